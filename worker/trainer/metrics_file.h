// metrics.jsonl: one JSON object a logged step (docs/metrics.md), as
// many of the steps before a resume as the checkpoint had. Used by one
// thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "qlora/v1/job.pb.h"

namespace qlora::trainer {

// The line, without its end.
std::string MetricLine(const v1::MetricPoint& point);

class MetricsFile {
 public:
  explicit MetricsFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  // Starts the file: empty, or with the content of `from` (of a checkpoint).
  absl::Status Start(const std::string& from);
  // ResourceExhausted when the disk is full.
  absl::Status Append(const v1::MetricPoint& point);

 private:
  const std::string path_;
};

}  // namespace qlora::trainer
