// What clients and workers must not be able to do to the coordinator.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>

#include "server_harness.h"

namespace qlora::server {
namespace {

using ::testing::HasSubstr;

absl::Duration TimeOf(const std::function<void()>& f) {
  const absl::Time start = absl::Now();
  f();
  return absl::Now() - start;
}

// Of a stream that is not expected to send anything.
template <typename Message>
grpc::Status LastStatus(grpc::ClientReader<Message>& stream, Message& message) {
  EXPECT_FALSE(stream.Read(&message));
  return stream.Finish();
}

TEST_F(ServerTest, Shutdown_EndsStreamsAtOnce) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  v1::StreamEventsRequest request;
  request.set_job(RunJob(worker, "r1"));
  request.set_follow(true);
  const auto follow = Deadline();
  const auto events = jobs_->StreamEvents(follow.get(), request);
  v1::JobEvent event;
  ASSERT_TRUE(events->Read(&event));
  // One that never goes on.
  const auto upload = Deadline();
  v1::UploadArtifactResponse response;
  const auto writer = artifacts_->UploadArtifact(upload.get(), &response);
  v1::UploadArtifactRequest chunk;
  chunk.set_sha256(Sha256Hex("ab"));
  chunk.set_total_bytes(2);
  chunk.set_data("a");
  ASSERT_TRUE(writer->Write(chunk));
  EXPECT_LT(TimeOf([&] { server_.reset(); }), absl::Seconds(4));
  while (events->Read(&event)) {
  }
  EXPECT_EQ(events->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(writer->Finish().ok());
}

TEST_F(ServerTest, Pages_GoOnBehindAJobThatIsGone) {
  std::vector<std::string> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(Submit(std::to_string(i)).job_id());
  v1::ListJobsRequest request;
  request.set_page_size(2);
  v1::ListJobsResponse page;
  ASSERT_TRUE(jobs_->ListJobs(Deadline().get(), request, &page).ok());
  ASSERT_EQ(page.jobs_size(), 2);
  EXPECT_EQ(page.jobs(1).job_id(), ids[2]);
  v1::DeleteJobRequest remove;
  remove.set_request_id("delete");
  remove.set_job(ids[2]);
  v1::DeleteJobResponse removed;
  ASSERT_TRUE(jobs_->DeleteJob(Deadline().get(), remove, &removed).ok());
  request.set_page_token(page.next_page_token());
  ASSERT_TRUE(jobs_->ListJobs(Deadline().get(), request, &page).ok());
  ASSERT_EQ(page.jobs_size(), 2);
  EXPECT_EQ(page.jobs(0).job_id(), ids[1]);
  EXPECT_EQ(page.jobs(1).job_id(), ids[0]);
  EXPECT_EQ(page.next_page_token(), "");
  for (const char* token : {"j-1", "1.2", "x.y.z"}) {
    request.set_page_token(token);
    EXPECT_EQ(jobs_->ListJobs(Deadline().get(), request, &page).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT)
        << token;
  }
}

TEST_F(ServerTest, PagesOfLargeJobs_FitAMessage) {
  constexpr int kJobs = 24;
  const std::string padding = "# " + std::string(240'000, 'x') + "\n";
  for (int i = 0; i < kJobs; ++i) {
    v1::Job job;
    const auto request = Request(std::to_string(i), padding);
    ASSERT_TRUE(Create(request, &job).ok());
  }
  v1::ListJobsRequest request;
  request.set_page_size(1000);
  int seen = 0;
  do {
    v1::ListJobsResponse page;
    const grpc::Status status =
        jobs_->ListJobs(Deadline().get(), request, &page);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_GT(page.jobs_size(), 0);
    seen += page.jobs_size();
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(seen, kJobs);
}

TEST_F(ServerTest, LongTexts_LeaveTheJobReadable) {
  FakeWorker worker(server_->grpc_address(), "n1", 1);
  worker.model_roots = options_.model_roots;
  worker.Connect();
  const std::string id = RunJob(worker, "r1");
  v1::CancelJobRequest cancel;
  cancel.set_request_id("cancel");
  cancel.set_job(id);
  cancel.set_reason(std::string(3 << 20, 'x'));
  v1::Job job;
  EXPECT_THAT(jobs_->CancelJob(Deadline().get(), cancel, &job).error_message(),
              HasSubstr("reason: has 3145728 bytes, at most 1024"));
  const std::string text(4'100'000, 'y');
  worker.Send(id, 1, [&](auto& e) { e.mutable_log()->set_text(text); });
  worker.Send(id, 1, [&](auto& e) {
    e.mutable_notice()->set_type("Loud");
    e.mutable_notice()->set_message(text);
  });
  worker.AwaitAck(worker.Send(id, 1, [&](auto& e) {
    e.mutable_ended()->set_failure_class(v1::FAILURE_CLASS_USER);
    e.mutable_ended()->set_message(text);
  }));
  EXPECT_LT(Get(id).ByteSizeLong(), 64u << 10);
  v1::StreamLogsRequest logs;
  logs.set_job(id);
  auto context = Deadline();
  auto lines = jobs_->StreamLogs(context.get(), logs);
  v1::LogLine line;
  ASSERT_TRUE(lines->Read(&line));
  EXPECT_LE(line.text().size(), 256u << 10);
  EXPECT_FALSE(lines->Read(&line));
  EXPECT_TRUE(lines->Finish().ok());
  v1::StreamEventsRequest follow;
  follow.set_job(id);
  context = Deadline();
  auto events = jobs_->StreamEvents(context.get(), follow);
  v1::JobEvent event;
  bool loud = false;
  while (events->Read(&event)) loud |= event.type() == "Loud";
  EXPECT_TRUE(events->Finish().ok());
  EXPECT_TRUE(loud);
}

// A point with every field set, none of which could be longer.
v1::MetricPoint LongPoint() {
  v1::MetricPoint point;
  const google::protobuf::Reflection& set = *point.GetReflection();
  const google::protobuf::Descriptor& fields = *point.GetDescriptor();
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::FieldDescriptor* field = fields.field(i);
    switch (field->type()) {
      case google::protobuf::FieldDescriptor::TYPE_INT64:
        set.SetInt64(&point, field, std::numeric_limits<int64_t>::max());
        break;
      case google::protobuf::FieldDescriptor::TYPE_INT32:
        set.SetInt32(&point, field, std::numeric_limits<int32_t>::max());
        break;
      case google::protobuf::FieldDescriptor::TYPE_DOUBLE:
        set.SetDouble(&point, field, 1.0 / 3);
        break;
      default:
        break;
    }
  }
  point.mutable_time()->set_seconds(1'700'000'000);
  point.mutable_time()->set_nanos(999'999'999);
  for (const char* phase : {"data", "gather", "forward", "backward", "comm",
                            "optim", "eval", "checkpoint"}) {
    (*point.mutable_phase_seconds())[phase] = 1.0 / 3;
  }
  return point;
}

TEST_F(ServerTest, CurveOfManyPoints_FitsAMessage) {
  const std::string id = Submit("r1").job_id();
  std::string point, points;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  ASSERT_TRUE(
      google::protobuf::util::MessageToJsonString(LongPoint(), &point, options)
          .ok());
  const std::string rest = point.substr(point.find(','));
  for (int step = 1; step <= 20'000; ++step) {
    absl::StrAppend(&points, "{\"step\":\"", step, "\"", rest, "\n");
  }
  ASSERT_TRUE(WriteFileAtomically(
                  options_.data_dir + "/jobs/" + id + "/metrics.jsonl", points)
                  .ok());
  v1::QueryMetricsRequest request;
  request.set_job(id);
  v1::QueryMetricsResponse response;
  const grpc::Status status =
      jobs_->QueryMetrics(Deadline().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.points_size(), 8'000);
  EXPECT_EQ(response.points(0).step(), 1);
  EXPECT_EQ(response.points(7'999).step(), 20'000);
  EXPECT_EQ(response.points(0).phase_seconds_size(), 8);
}

TEST_F(ServerTest, Curve_HasTheNewestRecordOfEachStep) {
  const std::string id = Submit("r1").job_id();
  ASSERT_TRUE(
      WriteFileAtomically(options_.data_dir + "/jobs/" + id + "/metrics.jsonl",
                          "{\"step\":\"1\",\"loss\":9.0,\"attempt\":1}\n"
                          "{\"step\":\"2\",\"loss\":8.0,\"attempt\":1}\n"
                          "{\"step\":\"3\",\"loss\":7.0,\"attempt\":1}\n"
                          "{\"step\":\"2\",\"loss\":6.0,\"attempt\":2}\n"
                          "{\"step\":\"3\",\"lo\n"
                          "\n")
          .ok());
  v1::QueryMetricsRequest request;
  request.set_job(id);
  const auto losses = [&] {
    v1::QueryMetricsResponse response;
    const grpc::Status status =
        jobs_->QueryMetrics(Deadline().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<double> all;
    for (const auto& point : response.points()) all.push_back(point.loss());
    return all;
  };
  EXPECT_EQ(losses(), (std::vector<double>{9, 6, 7}));
  request.set_from_step(2);
  EXPECT_EQ(losses(), (std::vector<double>{6, 7}));
  request.set_max_points(1);
  EXPECT_EQ(losses(), (std::vector<double>{7}));
}

TEST_F(ServerTest, NumbersThatMakeNoSense_AreNamed) {
  const auto refused = [&](const char* field, auto set) {
    v1::GenerateRequest request;
    request.set_model(ModelDir());
    request.set_prompt("a");
    set(request);
    const auto context = Deadline();
    const auto stream = jobs_->Generate(context.get(), request);
    v1::GenerateResponse response;
    EXPECT_FALSE(stream->Read(&response));
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(field));
  };
  refused("max_new_tokens:", [](auto& r) { r.set_max_new_tokens(-1); });
  refused("temperature:", [](auto& r) { r.set_temperature(std::nan("")); });
  refused("temperature:", [](auto& r) {
    r.set_temperature(std::numeric_limits<double>::infinity());
  });
  refused("top_p:", [](auto& r) { r.set_top_p(2); });
}

TEST_F(ServerTest, UploadedFiles_AreNamedOnceAndStayInside) {
  v1::Job job;
  for (const char* path : {"rows.jsonl", "../rows.jsonl", "/rows.jsonl"}) {
    v1::CreateJobRequest request = Request(path);
    auto& files = *request.mutable_inputs(0)->mutable_files();
    *files.Add() = files.Get(0);
    files.Mutable(1)->set_path(path);
    EXPECT_THAT(Create(request, &job).error_message(),
                HasSubstr("must be relative, without .., and named once"));
  }
}

TEST_F(ServerTest, NegativePlacesAndUnknownStates_AreNamed) {
  const std::string id = Submit("r1").job_id();
  const auto refused = [](const grpc::Status& status, const char* field) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(field));
  };
  v1::ListJobsRequest list;
  list.add_states(static_cast<v1::JobState>(77));
  v1::ListJobsResponse jobs;
  refused(jobs_->ListJobs(Deadline().get(), list, &jobs), "states:");
  v1::QueryMetricsRequest query;
  query.set_job(id);
  query.set_from_step(-1);
  v1::QueryMetricsResponse points;
  refused(jobs_->QueryMetrics(Deadline().get(), query, &points), "from_step:");
  std::deque<std::unique_ptr<grpc::ClientContext>> contexts;
  const auto context = [&] { return contexts.emplace_back(Deadline()).get(); };
  v1::StreamLogsRequest logs;
  logs.set_job(id);
  logs.set_tail(-1);
  v1::LogLine line;
  refused(LastStatus(*jobs_->StreamLogs(context(), logs), line), "tail:");
  v1::StreamEventsRequest events;
  events.set_job(id);
  events.set_from_offset(-1);
  v1::JobEvent event;
  refused(LastStatus(*jobs_->StreamEvents(context(), events), event),
          "from_offset:");
  v1::StreamMetricsRequest metrics;
  metrics.set_job(id);
  metrics.set_after_step(-1);
  v1::MetricPoint point;
  refused(LastStatus(*jobs_->StreamMetrics(context(), metrics), point),
          "after_step:");
  // What lies behind the end of a file is its end.
  events.set_from_offset(std::numeric_limits<int64_t>::max());
  EXPECT_TRUE(LastStatus(*jobs_->StreamEvents(context(), events), event).ok());
}

}  // namespace
}  // namespace qlora::server
