// The coordinator's process: opens its data directory, listens, keeps time.
//
//   <data-dir>/LOCK               one process only
//   <data-dir>/coordinator.db     SQLite (store/migrations.cc)
//   <data-dir>/artifacts/         content-addressed files
//   <data-dir>/jobs/<id>/         metrics.jsonl, logs.jsonl, events.jsonl
//   <data-dir>/endpoints.json     {"grpc": "...", "metrics": "..."} while up
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/state.h"
#include "server/store/job_log.h"

namespace qlora::server {

struct ServerOptions {
  std::string data_dir;
  // Loopback addresses; port 0 takes a free one.
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:9464";
  // Directories that models may be read from.
  std::vector<std::string> model_roots;
  Timings timings;
  // Artifacts that nothing refers to are removed when untouched for so long.
  absl::Duration artifact_grace = absl::Minutes(10);
  // Of a job's log lines so many bytes are kept.
  int64_t job_log_limit = JobLog::kDefaultMaxLogBytes;
};

class Server {
 public:
  // InvalidArgument: an address that is not loopback, a model root that is no
  // directory; FailedPrecondition: another process has the data directory, or a
  // newer version wrote it; Unavailable: a port is taken.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerOptions& options);
  // Drains: takes no more calls, lets running ones end for up to 1 s.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // With the ports that were taken.
  const std::string& grpc_address() const;
  const std::string& metrics_address() const;

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// What Start checks before it touches anything.
absl::Status CheckOptions(const ServerOptions& options);

}  // namespace qlora::server
