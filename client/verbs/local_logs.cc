#include <fstream>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/local/data_dir.h"
#include "client/local/instance.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

// Prints what has been appended to the file since the last call.
class Tail {
 public:
  Tail(std::string name, const std::string& path)
      : name_(std::move(name)), in_(path) {}

  bool is_open() const { return in_.is_open(); }

  void Print(std::ostream& out) {
    in_.clear();
    std::string line;
    while (std::getline(in_, line)) {
      partial_ += line;
      // A line without its end yet: the rest comes later.
      if (in_.eof()) return;
      out << name_ << "  " << partial_ << "\n";
      partial_.clear();
    }
    out << std::flush;
  }

 private:
  const std::string name_;
  std::ifstream in_;
  std::string partial_;
};

}  // namespace

absl::Status LocalLogs(Session& session, const std::string& data_dir_flag,
                       bool follow) {
  ASSIGN_OR_RETURN(const std::string data_dir,
                   LocalDataDir(session, data_dir_flag));
  Tail coordinator("coordinator", CoordinatorLog(data_dir));
  Tail worker("worker     ", WorkerLog(data_dir));
  if (!coordinator.is_open() && !worker.is_open()) {
    return WithHint(
        WithWhat(absl::NotFoundError("nothing was started there yet"),
                 absl::StrCat("there are no logs in ", data_dir)),
        "qloractl local start");
  }
  do {
    coordinator.Print(*session.output.out);
    worker.Print(*session.output.out);
    if (follow) absl::SleepFor(absl::Milliseconds(200));
  } while (follow);
  return absl::OkStatus();
}

}  // namespace qlora::client
