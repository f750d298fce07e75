#include "absl/strings/str_cat.h"
#include "client/job_calls.h"
#include "client/render.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"

namespace qlora::client {

absl::Status Metrics(Session& session, const MetricsOptions& options) {
  Output output = session.output;
  if (options.format != "csv") {
    ASSIGN_OR_RETURN(output.format, ParseOutputFormat(options.format));
  }
  ASSIGN_OR_RETURN(const std::vector<v1::MetricPoint> points,
                   FetchMetrics(session, options.job, options.max_points));
  if (options.format == "csv") {
    *output.out << MetricsCsv(points);
    return absl::OkStatus();
  }
  if (output.format == OutputFormat::kJsonl) {
    *output.out << MetricsJsonl(points);
    return absl::OkStatus();
  }
  v1::QueryMetricsResponse response;
  response.mutable_points()->Assign(points.begin(), points.end());
  return PrintList(output, response, points, MetricView());
}

}  // namespace qlora::client
