// JobService of proto/qlora/v1/job.proto.
#pragma once

#include "qlora/v1/job.grpc.pb.h"
#include "server/services/context.h"

namespace qlora::server {

class JobService : public qlora::v1::JobService::CallbackService {
 public:
  explicit JobService(const ServiceContext& services) : services_(services) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* CreateJob(
      Context* context, const qlora::v1::CreateJobRequest* request,
      qlora::v1::Job* response) override;
  grpc::ServerUnaryReactor* GetJob(Context* context,
                                   const qlora::v1::GetJobRequest* request,
                                   qlora::v1::Job* response) override;
  grpc::ServerUnaryReactor* ListJobs(
      Context* context, const qlora::v1::ListJobsRequest* request,
      qlora::v1::ListJobsResponse* response) override;
  grpc::ServerUnaryReactor* CancelJob(
      Context* context, const qlora::v1::CancelJobRequest* request,
      qlora::v1::Job* response) override;
  grpc::ServerUnaryReactor* ResumeJob(
      Context* context, const qlora::v1::ResumeJobRequest* request,
      qlora::v1::Job* response) override;
  grpc::ServerUnaryReactor* DeleteJob(
      Context* context, const qlora::v1::DeleteJobRequest* request,
      qlora::v1::DeleteJobResponse* response) override;
  grpc::ServerUnaryReactor* QueryMetrics(
      Context* context, const qlora::v1::QueryMetricsRequest* request,
      qlora::v1::QueryMetricsResponse* response) override;
  grpc::ServerUnaryReactor* PlanJob(
      Context* context, const qlora::v1::PlanJobRequest* request,
      qlora::v1::PlanJobResponse* response) override;
  grpc::ServerUnaryReactor* VerifyAdapter(
      Context* context, const qlora::v1::VerifyAdapterRequest* request,
      qlora::v1::VerifyAdapterResponse* response) override;

  grpc::ServerWriteReactor<qlora::v1::Job>* WatchJob(
      Context* context, const qlora::v1::WatchJobRequest* request) override;
  grpc::ServerWriteReactor<qlora::v1::LogLine>* StreamLogs(
      Context* context, const qlora::v1::StreamLogsRequest* request) override;
  grpc::ServerWriteReactor<qlora::v1::JobEvent>* StreamEvents(
      Context* context, const qlora::v1::StreamEventsRequest* request) override;
  grpc::ServerWriteReactor<qlora::v1::MetricPoint>* StreamMetrics(
      Context* context,
      const qlora::v1::StreamMetricsRequest* request) override;
  grpc::ServerWriteReactor<qlora::v1::GenerateResponse>* Generate(
      Context* context, const qlora::v1::GenerateRequest* request) override;

 private:
  const ServiceContext services_;
};

// The job with its progress, as users see it.
absl::StatusOr<qlora::v1::Job> ViewJob(const ServiceContext& services,
                                       const std::string& reference,
                                       const std::string& project);

}  // namespace qlora::server
