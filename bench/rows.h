// What a benchmark prints: one row a figure, as text and as JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"

namespace qlora::bench {

struct Row {
  std::string name;
  double value = 0;
  std::string unit;
  // The same figure of the program that we compare with, measured in this run.
  std::optional<double> peer_value;
  // How many times better than the peer: more of what should be large, less of
  // what should be small.
  std::optional<double> ratio;
  // Share of the machine's own limit, measured in this run.
  std::optional<double> limit_share;
};

// A table on standard output.
void PrintRows(const std::vector<Row>& rows);

// The run and its rows to options.json, as bench/results/README.md says.
absl::Status WriteRun(const Options& options, const std::vector<Row>& rows);

}  // namespace qlora::bench
