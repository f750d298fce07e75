// Reading a stream of records, each printed as it comes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>

#include "absl/status/status.h"
#include "client/connection.h"
#include "client/output.h"
#include "common/base/status_macros.h"

namespace qlora::client {

// One record as JSON on one line, or as a YAML document.
inline absl::Status PrintRecord(const Output& output,
                                const google::protobuf::Message& record) {
  absl::StatusOr<std::string> text = output.format == OutputFormat::kYaml
                                         ? ToYaml(record)
                                         : ToJson(record, /*one_line=*/true);
  RETURN_IF_ERROR(text.status());
  if (output.format == OutputFormat::kYaml) *output.out << "---\n";
  *output.out << *text << std::flush;
  return absl::OkStatus();
}

// Hands every message to `print`; ends with the stream's status or print's
// first error.
template <typename Record>
absl::Status ReadStream(
    const Connection& connection, grpc::ClientContext& context,
    grpc::ClientReader<Record>& reader,
    const std::function<absl::Status(const Record&)>& print) {
  Record record;
  while (reader.Read(&record)) {
    const absl::Status printed = print(record);
    if (printed.ok()) continue;
    context.TryCancel();
    reader.Finish();
    return printed;
  }
  return connection.ToStatus(reader.Finish());
}

}  // namespace qlora::client
