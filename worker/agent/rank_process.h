// One qlora-trainer process as its agent sees it: commands down, events up,
// printed lines, the end. Used on the event loop's thread only.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qlora/v1/trainer.pb.h"
#include "worker/agent/event_loop.h"
#include "worker/agent/outcome.h"
#include "worker/agent/processes.h"
#include "worker/agent/text.h"
#include "worker/frames/frame_decoder.h"

namespace qlora::agent {

struct RankOptions {
  int rank = 0;
  // Path of qlora-trainer.
  std::string trainer;
  // The process's working directory.
  std::string directory;
  // Processes of one group share a cgroup.
  std::string group;
  std::vector<int> cores;
  int threads = 1;
  // Rank 0 of a gang: where the others connect.
  UniqueFd listener;
};

class RankProcess {
 public:
  struct Handlers {
    std::function<void()> on_started;
    std::function<void(v1::TrainerEvent)> on_event;
    // What it printed.
    std::function<void(std::string line)> on_line;
    // Everything that it sent before has been delivered. May destroy this only
    // later, through the loop.
    std::function<void()> on_end;
  };

  // Starts the process; failing to is reported as its end.
  RankProcess(EventLoop& loop, Processes& processes, RankOptions options,
              Handlers handlers);
  // Kills it if it runs.
  ~RankProcess();
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;

  // Commands to one that has ended go nowhere.
  void Send(const v1::TrainerCommand& command);
  // The agent ends it: not a cause of failure.
  void Kill();
  // It sent what it must not: a failure of its own, INTERNAL with that reason.
  // Nothing of it is read any more, and it is killed.
  void Reject(std::string_view why);

  bool ended() const { return ended_; }
  // Valid after on_end.
  const RankEnd& end() const { return end_; }
  // 0 until on_started.
  pid_t pid() const { return pid_; }

 private:
  absl::Status Start(RankOptions options);
  void OnReply(const LauncherReply& reply);
  void OnSocket(short revents);
  // Both stop after that many bytes: one that sends without end must not keep
  // the loop from its other work. False at the end of the stream.
  bool ReadEvents(size_t most);
  void DecodeEvents();
  void WritePending();
  bool ReadLines(int fd, LineSplitter& lines, size_t most);
  void WatchSocket();
  void End();

  EventLoop& loop_;
  Processes& processes_;
  const Handlers handlers_;
  uint64_t process_ = 0;
  pid_t pid_ = 0;
  bool ended_ = false;
  bool rejected_ = false;
  RankEnd end_;
  UniqueFd socket_;
  UniqueFd stdout_;
  UniqueFd stderr_;
  FrameDecoder decoder_;
  // Not yet written to the socket.
  std::string pending_;
  LineSplitter stdout_lines_;
  LineSplitter stderr_lines_;
};

}  // namespace qlora::agent
