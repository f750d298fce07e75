// A rank that does what its job file says instead of training: lines of
// "key=value". It speaks the real frames, so that a real agent supervises it.
//
//   steps=N          metrics for steps 1..N, then the end (default 3)
//   step_ms=T        time a step (default 0)
//   save_every=N     stages a checkpoint every N steps
//   print=TEXT       on standard output
//   warn=TEXT        a warning in the log
//   fail_rank=R      that rank fails...
//   fail_step=N      ...after that step...
//   exit=C           ...with that code and a TrainerFailure of that class
//   class=K
//   signal=S         ...or by that signal
//   hang=N           stops sending after step N
//   stop_rank=R      that rank stops itself (SIGSTOP) after its first step
//   save_ms=T        saying before that so many bytes are saved as take 10 s
//   ignore_stop=1    goes on when told to stop
//   garbage=1        sends bytes that are no frame, then whole frames
//   flood=1          prints without end
//   burst=N          prints "line 1" to "line N"
//   message_bytes=N  fails with a message of so many bytes
//   stage_at=PATH    says that its checkpoints lie there
//
// Its output is the task that it was given; in another mode than TRAIN it only
// says that.
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include "common/base/sha256.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/frames/frames.h"
#include "worker/frames/rank_start.h"

namespace {

using qlora::v1::TrainerCommand;
using qlora::v1::TrainerEvent;
using qlora::v1::TrainerTask;

class FakeRank {
 public:
  int Run() {
    TrainerCommand command = Receive();
    task_ = command.task();
    ReadScript();
    TrainerEvent event;
    event.mutable_ready()->set_version("fake");
    Send(event);
    if (task_.mode() != qlora::v1::TRAINER_MODE_TRAIN) {
      event.mutable_generated()->set_text(task_.DebugString());
      Send(event);
      event.mutable_result();
      Send(event);
      return 0;
    }
    if (task_.world_size() > 1) Receive();
    event.mutable_running()->set_first_step(1);
    Send(event);
    if (script_.contains("print")) {
      std::cout << script_["print"] << std::endl;
    }
    while (Number("flood", 0) != 0) std::cout << "again and again\n";
    for (int line = 1; line <= Number("burst", 0); ++line) {
      std::cout << "line " << line << "\n";
    }
    if (script_.contains("warn")) {
      event.mutable_log()->set_level("warning");
      event.mutable_log()->set_text(script_["warn"]);
      Send(event);
    }
    const int steps = Number("steps", 3);
    for (int step = 1; step <= steps; ++step) {
      Begin(qlora::v1::TrainerProgress::PHASE_STEP, step, 0);
      ::usleep(static_cast<unsigned>(1000 * Number("step_ms", 0)));
      if (task_.rank() == 0) Metrics(step);
      MaybeFail(step);
      if (Number("hang", 0) == step) ::pause();
      if (Number("stop_rank", -1) == task_.rank()) ::raise(SIGSTOP);
      if (StopRequested()) return Finish(step, /*stopped=*/true);
      const int every = Number("save_every", 0);
      if (every > 0 && step % every == 0 && step < steps) Stage(step, false);
    }
    return Finish(steps, /*stopped=*/false);
  }

 private:
  void ReadScript() {
    std::istringstream in(task_.job_file());
    std::string line;
    while (std::getline(in, line)) {
      const size_t equals = line.find('=');
      if (equals != std::string::npos) {
        script_[line.substr(0, equals)] = line.substr(equals + 1);
      }
    }
  }

  int Number(const std::string& key, int otherwise) const {
    const auto it = script_.find(key);
    return it == script_.end() ? otherwise : std::atoi(it->second.c_str());
  }

  static TrainerCommand Receive() {
    TrainerCommand command;
    const auto more = qlora::ReadFrame(qlora::kRankFramesFd, &command);
    // The agent is gone.
    if (!more.ok() || !*more) std::exit(17);
    return command;
  }

  static void Send(const TrainerEvent& event) {
    if (!qlora::WriteFrame(qlora::kRankFramesFd, event).ok()) std::exit(17);
  }

  bool StopRequested() {
    pollfd fd = {.fd = qlora::kRankFramesFd, .events = POLLIN, .revents = 0};
    while (::poll(&fd, 1, 0) > 0) {
      stop_ |= Receive().has_stop() && Number("ignore_stop", 0) == 0;
    }
    return stop_;
  }

  static void Begin(qlora::v1::TrainerProgress::Phase phase, int step,
                    int64_t bytes) {
    TrainerEvent event;
    event.mutable_progress()->set_phase(phase);
    event.mutable_progress()->set_step(step);
    event.mutable_progress()->set_bytes(bytes);
    Send(event);
  }

  void Metrics(int step) {
    TrainerEvent event;
    event.mutable_metrics()->set_step(step);
    event.mutable_metrics()->set_loss(1.0 / step);
    Send(event);
  }

  void MaybeFail(int step) {
    if (Number("garbage", 0) != 0) {
      [[maybe_unused]] const ssize_t n =
          ::write(qlora::kRankFramesFd, "\xff\xff\xff\xff", 4);
      Finish(step, /*stopped=*/false);
      ::pause();
    }
    if (Number("fail_rank", -1) != task_.rank() ||
        Number("fail_step", 1) != step) {
      return;
    }
    if (Number("signal", 0) != 0) ::kill(::getpid(), Number("signal", 0));
    TrainerEvent event;
    event.mutable_failure()->set_failure_class(
        static_cast<qlora::v1::FailureClass>(Number("class", 1)));
    event.mutable_failure()->set_message(
        script_.contains("message_bytes")
            ? std::string(static_cast<size_t>(Number("message_bytes", 0)), 'x')
            : "the script says so");
    Send(event);
    std::exit(Number("exit", 10));
  }

  void Stage(int step, bool final) {
    Begin(qlora::v1::TrainerProgress::PHASE_SAVING, step, int64_t{40} << 20);
    ::usleep(static_cast<unsigned>(1000 * Number("save_ms", 0)));
    TrainerEvent event;
    qlora::v1::StagedFiles& staged = *event.mutable_staged();
    staged.set_step(step);
    staged.set_final(final);
    staged.set_state_sha256(qlora::Sha256Hex(std::to_string(step)));
    if (task_.rank() == 0) {
      const std::string directory =
          task_.work_directory() + "/staged/" + std::to_string(step);
      Write(directory, "sub/state.bin", "state " + std::to_string(step));
      Write(directory, "manifest.json", "{}");
      staged.set_directory(script_.contains("stage_at") ? script_["stage_at"]
                                                        : directory);
      staged.set_manifest_sha256(qlora::Sha256Hex("{}"));
      if (final) {
        const std::string output = task_.work_directory() + "/output";
        Write(output, "task.txt", task_.DebugString());
        staged.set_output_directory(output);
      }
    }
    Send(event);
  }

  static void Write(const std::string& directory, const std::string& name,
                    const std::string& text) {
    const auto path = std::filesystem::path(directory) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }

  int Finish(int step, bool stopped) {
    Stage(step, !stopped);
    TrainerEvent event;
    event.mutable_result()->set_step(step);
    event.mutable_result()->set_stopped(stopped);
    Send(event);
    return 0;
  }

  TrainerTask task_;
  std::map<std::string, std::string> script_;
  bool stop_ = false;
};

}  // namespace

int main() { return FakeRank().Run(); }
