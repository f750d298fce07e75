// What attempts and tasks share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "qlora/v1/node.pb.h"
#include "qlora/v1/worker.pb.h"
#include "worker/agent/event_loop.h"
#include "worker/agent/inputs.h"
#include "worker/agent/metrics.h"
#include "worker/agent/processes.h"

namespace qlora::agent {

struct RankTimeouts {
  // Fetching inputs and starting the ranks.
  absl::Duration prepare = absl::Minutes(30);
  // From Start until the first micro-batch is done.
  absl::Duration first_step = absl::Minutes(30);
  // Without progress after that: see progress_watch.h. A rank that is stopped
  // (SIGSTOP) for so long ends its attempt too.
  absl::Duration step = absl::Minutes(1);
  // What the peers of a rank that failed get to say why they failed.
  absl::Duration peers = absl::Seconds(1);
  // From Prepared to Start: the other nodes of the gang prepare.
  absl::Duration start = absl::Hours(1);
  // Training goes on for so long without a coordinator that knows of it.
  absl::Duration alone = absl::Hours(24);
  // What is left of an attempt that the coordinator does not know waits for one
  // that does, from the time when it was last written.
  absl::Duration kept = absl::Hours(7 * 24);
};

// Everything outlives the attempts and tasks; used on the loop's thread.
struct Environment {
  EventLoop& loop;
  Processes& processes;
  InputFetcher& fetcher;
  AgentMetrics& metrics;
  // Stores an event for the coordinator; stamps number and time.
  std::function<void(v1::WorkerEvent)> emit;
  // Path of qlora-trainer.
  std::string trainer;
  // Work directories lie below it.
  std::string directory;
  // For TrainerTask.token_cache_directory.
  std::string token_cache;
  // Address that the collectives use.
  std::string data_plane_host;
  std::vector<v1::Device> devices;
  RankTimeouts timeouts;
};

}  // namespace qlora::agent
