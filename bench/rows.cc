#include "bench/rows.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/host.h"
#include "common/base/files.h"
#include "nlohmann/json.hpp"
#include "qlora_revision.h"

namespace qlora::bench {
namespace {

std::string Text(const std::optional<double>& value) {
  return value ? absl::StrFormat("%.4g", *value) : "-";
}

nlohmann::json Json(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

}  // namespace

void PrintRows(const std::vector<Row>& rows) {
  std::printf("%-40s %12s %-10s %12s %8s %11s\n", "name", "value", "unit",
              "peer_value", "ratio", "limit_share");
  for (const Row& row : rows) {
    std::printf("%-40s %12.5g %-10s %12s %8s %11s\n", row.name.c_str(),
                row.value, row.unit.c_str(), Text(row.peer_value).c_str(),
                Text(row.ratio).c_str(), Text(row.limit_share).c_str());
  }
}

absl::Status WriteRun(const Options& options, const std::vector<Row>& rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    list.push_back({{"name", row.name},
                    {"value", row.value},
                    {"unit", row.unit},
                    {"peer_value", Json(row.peer_value)},
                    {"ratio", Json(row.ratio)},
                    {"limit_share", Json(row.limit_share)}});
  }
  const nlohmann::ordered_json run = {
      {"machine", DescribeHost()},
      {"commit", QLORA_REVISION},
      {"date", absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone())},
      {"command", options.command},
      {"threads", options.threads},
      {"rows", std::move(list)}};
  return WriteFileAtomically(options.json, run.dump(1) + "\n");
}

}  // namespace qlora::bench
