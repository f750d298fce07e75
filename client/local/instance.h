// What `local start` left behind: which daemons run where. One JSON file,
// <data-dir>/local.json, written whenever something changes, so that `local
// stop` finds what was started even after a start that was cut short.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/local/process.h"

namespace qlora::client {

struct LocalInstance {
  ProcessId coordinator;
  ProcessId worker;
  // host:port of the coordinator; empty until it is known.
  std::string endpoint;
  std::string metrics;
  std::string worker_metrics;
  // As given to `local start`.
  int cpu_ranks = 0;
  std::vector<std::string> model_roots;

  bool both_alive() const { return IsAlive(coordinator) && IsAlive(worker); }
  bool any_alive() const { return IsAlive(coordinator) || IsAlive(worker); }
};

// nullopt if there is none. DataLoss if the file is not what SaveInstance
// wrote.
absl::StatusOr<std::optional<LocalInstance>> LoadInstance(
    const std::string& data_dir);
absl::Status SaveInstance(const std::string& data_dir,
                          const LocalInstance& instance);

struct Stopped {
  // Neither had to be killed.
  bool worker_clean = true;
  bool coordinator_clean = true;
};

// Stops the worker, then the coordinator, and removes local.json.
absl::StatusOr<Stopped> StopInstance(const std::string& data_dir,
                                     const LocalInstance& instance,
                                     absl::Duration grace);

std::string CoordinatorLog(const std::string& data_dir);
std::string WorkerLog(const std::string& data_dir);

}  // namespace qlora::client
