// Lines out of what a process prints, and what they say. Used by one thread.
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

struct PrintedLine {
  // "debug", "info", "warning" or "error".
  std::string_view level;
  std::string_view text;
};

// The message without the places in source files that libraries put into theirs
// ("[.../gloo/transport/tcp/pair.cc:534] ").
std::string WithoutSourcePlaces(std::string_view message);

// The level as the line states it: as our own programs do, whose time, level
// and program are left out of the text ("<time> E qlora-trainer: no model"); as
// glog does ("[W1121 12:00:00 file.cc:1] ..."); or as its first word ("Warning:
// ..."). Else info.
PrintedLine ParsePrintedLine(std::string_view line);

}  // namespace qlora::agent
