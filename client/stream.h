// Reading a stream of records, each printed as it comes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "client/connection.h"
#include "client/job_calls.h"
#include "common/base/status_macros.h"

namespace qlora::client {

// Hands every message to `print`. The stream's status, or print's first error
// (*printed).
template <typename Record>
grpc::Status ReadStream(grpc::ClientContext& context,
                        grpc::ClientReader<Record>& reader,
                        const std::function<absl::Status(const Record&)>& print,
                        absl::Status* printed) {
  Record record;
  while (reader.Read(&record)) {
    *printed = print(record);
    if (printed->ok()) continue;
    context.TryCancel();
    break;
  }
  return reader.Finish();
}

// Prints a job's records to the stream's end. request.job is the job's id. With
// request.follow the stream is opened again, behind the last record, after the
// coordinator was away; a note on standard error says so. Returns exit code 0,
// or 101 if `end` came before.
template <typename Request, typename Record>
absl::StatusOr<int> StreamRecords(
    Session& session, Request request, absl::Time end,
    std::unique_ptr<grpc::ClientReader<Record>> (v1::JobService::Stub::*open)(
        grpc::ClientContext*, const Request&),
    const std::function<absl::Status(const Record&)>& print) {
  while (true) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(end));
    const auto reader = (session.connection().jobs().*open)(&context, request);
    absl::Status printed;
    const grpc::Status status = ReadStream<Record>(
        context, *reader,
        [&](const Record& record) {
          request.set_from_offset(record.next_offset());
          return print(record);
        },
        &printed);
    RETURN_IF_ERROR(printed);
    if (status.ok()) return kExitOk;
    if (absl::Now() >= end) {
      NoteDetached(request.job(), "--timeout");
      return kExitJobNotFinished;
    }
    if (!request.follow() || !IsConnectionLoss(status)) {
      return session.connection().ToStatus(status);
    }
    RETURN_IF_ERROR(AwaitCoordinator(session, request.job(), end));
  }
}

}  // namespace qlora::client
