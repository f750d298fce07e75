#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status Metrics(Session& session, const MetricsOptions& options) {
  if (options.format == "csv") {
    ASSIGN_OR_RETURN(const std::vector<v1::MetricPoint> points,
                     FetchMetrics(session, options.job, options.max_points));
    *session.output.out << MetricsCsv(points);
    return absl::OkStatus();
  }
  const absl::StatusOr<OutputFormat> format = ParseOutputFormat(options.format);
  if (!format.ok()) {
    return UsageError(absl::StrCat(format.status().message(), ", csv"));
  }
  Output output = session.output;
  output.format = *format;
  return PrintMetrics(session, options.job, output, options.max_points);
}

absl::Status PrintMetrics(Session& session, const std::string& job,
                          const Output& output, int max_points) {
  ASSIGN_OR_RETURN(const std::vector<v1::MetricPoint> points,
                   FetchMetrics(session, job, max_points));
  if (output.format == OutputFormat::kJsonl) {
    *output.out << MetricsJsonl(points);
    return absl::OkStatus();
  }
  v1::QueryMetricsResponse response;
  response.mutable_points()->Assign(points.begin(), points.end());
  return PrintList(output, response, points, MetricView());
}

}  // namespace qlora::client
