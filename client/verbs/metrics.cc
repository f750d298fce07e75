#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status Metrics(Session& session, const MetricsOptions& options) {
  if (options.format == "csv") {
    ASSIGN_OR_RETURN(const v1::QueryMetricsResponse metrics,
                     FetchMetrics(session, options.job, options.max_points));
    *session.output.out << MetricsCsv(
        {metrics.points().begin(), metrics.points().end()});
    return absl::OkStatus();
  }
  Output output = session.output;
  if (!options.format.empty()) {
    const absl::StatusOr<OutputFormat> format =
        ParseOutputFormat(options.format);
    if (!format.ok()) {
      return UsageError(absl::StrCat(format.status().message(), ", csv"));
    }
    output.format = *format;
  }
  return PrintMetrics(session, options.job, output, options.max_points);
}

absl::Status PrintMetrics(Session& session, const std::string& job,
                          const Output& output, int max_points) {
  ASSIGN_OR_RETURN(const v1::QueryMetricsResponse metrics,
                   FetchMetrics(session, job, max_points));
  if (output.format == OutputFormat::kJsonl) {
    *output.out << MetricsJsonl(
        {metrics.points().begin(), metrics.points().end()});
    return absl::OkStatus();
  }
  return PrintList(output, metrics, metrics.points(), MetricView());
}

}  // namespace qlora::client
