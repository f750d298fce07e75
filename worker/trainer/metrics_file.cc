#include "worker/trainer/metrics_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/time/time.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace qlora::trainer {

std::string MetricLine(const v1::MetricPoint& point) {
  const absl::Time time = absl::FromUnixSeconds(point.time().seconds()) +
                          absl::Nanoseconds(point.time().nanos());
  nlohmann::ordered_json line = {
      {"step", point.step()},
      {"epoch", point.epoch()},
      {"time",
       absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone())},
      {"loss", point.loss()},
      {"grad_norm", point.grad_norm()},
      {"learning_rate", point.learning_rate()},
      {"tokens_trained", point.tokens_trained()},
      {"tokens_total", point.tokens_total()},
      {"tokens_per_second", point.tokens_per_second()},
      {"step_seconds", point.step_seconds()},
      {"memory_bytes", point.memory_bytes()}};
  if (point.has_eval_loss()) line["eval_loss"] = point.eval_loss();
  return line.dump();
}

absl::Status MetricsFile::Start(const std::string& from) {
  std::string content;
  if (!from.empty()) {
    ASSIGN_OR_RETURN(content, ReadFile(from));
  }
  return WriteFileAtomically(path_, content);
}

absl::Status MetricsFile::Append(const v1::MetricPoint& point) {
  const std::string line = MetricLine(point) + "\n";
  const int fd =
      open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoToStatus(errno, path_);
  const ssize_t written = write(fd, line.data(), line.size());
  // A short write is what a full disk gives before the error.
  const int error = written < 0 ? errno : ENOSPC;
  close(fd);
  return written == static_cast<ssize_t>(line.size())
             ? absl::OkStatus()
             : ErrnoToStatus(error, path_);
}

}  // namespace qlora::trainer
