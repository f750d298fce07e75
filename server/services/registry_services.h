// ModelService, DatasetService, NodeService, CheckpointService and
// ServerService.
#pragma once

#include "qlora/v1/checkpoint.grpc.pb.h"
#include "qlora/v1/dataset.grpc.pb.h"
#include "qlora/v1/model.grpc.pb.h"
#include "qlora/v1/node.grpc.pb.h"
#include "qlora/v1/server.grpc.pb.h"
#include "server/services/context.h"

namespace qlora::server {

class ModelService : public qlora::v1::ModelService::CallbackService {
 public:
  explicit ModelService(const ServiceContext& services) : services_(services) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* ImportModel(
      Context* context, const qlora::v1::ImportModelRequest* request,
      qlora::v1::Model* response) override;
  grpc::ServerUnaryReactor* GetModel(Context* context,
                                     const qlora::v1::GetModelRequest* request,
                                     qlora::v1::Model* response) override;
  grpc::ServerUnaryReactor* ListModels(
      Context* context, const qlora::v1::ListModelsRequest* request,
      qlora::v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteModel(
      Context* context, const qlora::v1::DeleteModelRequest* request,
      qlora::v1::DeleteModelResponse* response) override;

 private:
  const ServiceContext services_;
};

class DatasetService : public qlora::v1::DatasetService::CallbackService {
 public:
  explicit DatasetService(const ServiceContext& services)
      : services_(services) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* PutDataset(
      Context* context, const qlora::v1::PutDatasetRequest* request,
      qlora::v1::Dataset* response) override;
  grpc::ServerUnaryReactor* GetDataset(
      Context* context, const qlora::v1::GetDatasetRequest* request,
      qlora::v1::Dataset* response) override;
  grpc::ServerUnaryReactor* ListDatasets(
      Context* context, const qlora::v1::ListDatasetsRequest* request,
      qlora::v1::ListDatasetsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteDataset(
      Context* context, const qlora::v1::DeleteDatasetRequest* request,
      qlora::v1::DeleteDatasetResponse* response) override;

 private:
  const ServiceContext services_;
};

class NodeService : public qlora::v1::NodeService::CallbackService {
 public:
  explicit NodeService(const ServiceContext& services) : services_(services) {}
  grpc::ServerUnaryReactor* ListNodes(
      grpc::CallbackServerContext* context,
      const qlora::v1::ListNodesRequest* request,
      qlora::v1::ListNodesResponse* response) override;
  grpc::ServerUnaryReactor* DeleteNode(
      grpc::CallbackServerContext* context,
      const qlora::v1::DeleteNodeRequest* request,
      qlora::v1::DeleteNodeResponse* response) override;

 private:
  const ServiceContext services_;
};

class CheckpointService : public qlora::v1::CheckpointService::CallbackService {
 public:
  explicit CheckpointService(const ServiceContext& services)
      : services_(services) {}
  grpc::ServerUnaryReactor* ListCheckpoints(
      grpc::CallbackServerContext* context,
      const qlora::v1::ListCheckpointsRequest* request,
      qlora::v1::ListCheckpointsResponse* response) override;

 private:
  const ServiceContext services_;
};

class ServerService : public qlora::v1::ServerService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetVersion(
      grpc::CallbackServerContext* context,
      const qlora::v1::GetVersionRequest* request,
      qlora::v1::GetVersionResponse* response) override;
};

}  // namespace qlora::server
