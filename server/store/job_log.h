// Append-only files of a job: metrics, logs and events, one JSON object (proto
// mapping) a line, under <directory>/<job id>/. Not state: a machine's crash
// may cost the last lines, a torn one is skipped by readers.
//
// Thread-safe; appends to one file are ordered as they come.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/mutex.h"

namespace qlora::server {

enum class LogKind { kMetrics, kLogs, kEvents };

class JobLog {
 public:
  // Of a job's log lines so many bytes are kept.
  static constexpr int64_t kDefaultMaxLogBytes = int64_t{256} << 20;

  explicit JobLog(std::string directory,
                  int64_t max_log_bytes = kDefaultMaxLogBytes)
      : directory_(std::move(directory)), max_log_bytes_(max_log_bytes) {}

  // Adds a line. A log that has reached its limit ends with a line that says
  // so, also where a start has lowered it; what comes after is dropped.
  // ResourceExhausted: the disk is full; Unavailable.
  absl::Status Append(const std::string& job_id, LogKind kind,
                      const google::protobuf::Message& message);

  struct Chunk {
    std::vector<std::string> lines;
    // Where to read on.
    int64_t next_offset = 0;
  };
  // Whole lines from offset on, up to about 256 KiB; none at the end, or
  // without a file. From behind the end, which a machine's crash may have
  // brought back, next_offset is the end.
  absl::StatusOr<Chunk> Read(const std::string& job_id, LogKind kind,
                             int64_t offset) const;
  // Where the last `lines` lines that `wanted` accepts begin (all of them in
  // between included); 0 if there are fewer.
  absl::StatusOr<int64_t> TailOffset(
      const std::string& job_id, LogKind kind, int64_t lines,
      const std::function<bool(const std::string&)>& wanted) const;

  // Syncs what was appended since the last call.
  void Sync();
  void Remove(const std::string& job_id);
  // Removes what there is of other jobs than these, once an earlier call than
  // `since` has seen it too and none between knew the job: a crash, or a late
  // line, left it behind a delete.
  void Collect(const std::set<std::string>& job_ids, absl::Time since);

 private:
  std::string Path(const std::string& job_id, LogKind kind) const;

  const std::string directory_;
  const int64_t max_log_bytes_;
  mutable Mutex mu_;
  // Files appended to since the last Sync, and since the start.
  std::set<std::string> dirty_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> seen_ ABSL_GUARDED_BY(mu_);
};

}  // namespace qlora::server
