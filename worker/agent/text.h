// Lines out of what a process prints. Used by one thread.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace qlora::agent {

class LineSplitter {
 public:
  explicit LineSplitter(std::function<void(std::string)> on_line)
      : on_line_(std::move(on_line)) {}

  // Calls on_line for each line that is complete, without its end. A longer
  // line than 8 KiB comes in pieces; empty ones are left out.
  void Append(std::string_view bytes);
  // The rest, if any.
  void Finish();

 private:
  void Flush();

  const std::function<void(std::string)> on_line_;
  std::string pending_;
};

}  // namespace qlora::agent
