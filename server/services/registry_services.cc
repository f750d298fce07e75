#include "server/services/registry_services.h"

#include <google/protobuf/util/message_differencer.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "common/base/format.h"
#include "common/base/status_macros.h"
#include "server/core/membership.h"
#include "server/model_registry.h"

namespace qlora::server {

using qlora::v1::Dataset;
using qlora::v1::Model;

namespace {

template <typename T>
absl::Status FindNamed(const std::map<std::string, T>& all, const char* what,
                       const std::string& name, T* out) {
  const auto it = all.find(name);
  if (it == all.end()) {
    return absl::NotFoundError(absl::StrCat("no ", what, " \"", name, "\""));
  }
  *out = it->second;
  return absl::OkStatus();
}

// By name, a page at a time, which fits a message; the token is the last name
// of the page before.
template <typename T, typename Request, typename Add>
absl::Status ListNamed(const std::map<std::string, T>& all,
                       const Request& request, Add add, std::string* token) {
  if (request.page_size() < 0 || request.page_size() > 1000) {
    return FieldError("page_size", "must be 0 to 1000");
  }
  const int size = request.page_size() == 0 ? 100 : request.page_size();
  int count = 0;
  size_t bytes = 0;
  for (auto it = all.upper_bound(request.page_token()); it != all.end(); ++it) {
    bytes += it->second.ByteSizeLong();
    if (count == size || (count > 0 && bytes > kMaxJobBytes)) {
      *token = std::prev(it)->first;
      return absl::OkStatus();
    }
    add(it->second);
    ++count;
  }
  return absl::OkStatus();
}

bool SameModel(Model a, Model b) {
  a.clear_create_time();
  b.clear_create_time();
  return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

absl::Status Import(const ServiceContext& services,
                    const qlora::v1::ImportModelRequest& request,
                    Model* response) {
  ASSIGN_OR_RETURN(Model model, InspectModel(request, *services.admission,
                                             *services.artifacts));
  ASSIGN_OR_RETURN(
      const std::string stored,
      services.coordinator->Mutate(
          request.request_id(), RequestDigest(request),
          [&](Draft& draft) -> absl::StatusOr<std::string> {
            const Model* known = draft.models.Find(model.name());
            if (known != nullptr && SameModel(*known, model)) {
              return known->SerializeAsString();
            }
            if (known != nullptr) {
              return absl::AlreadyExistsError(absl::StrCat(
                  "\"", model.name(),
                  "\" means another model; delete it first or choose another "
                  "name"));
            }
            *model.mutable_create_time() = ToProto(draft.now);
            draft.models.Put(model.name(), model);
            return model.SerializeAsString();
          }));
  response->ParseFromString(stored);
  return absl::OkStatus();
}

absl::StatusOr<std::string> EraseModel(Draft& draft, const std::string& name) {
  if (draft.models.Find(name) == nullptr) {
    return absl::NotFoundError(absl::StrCat("no model \"", name, "\""));
  }
  std::string user;
  draft.jobs.ForEach([&](const std::string& id, const server::Job& job) {
    if (!IsTerminal(job.job().state()) && job.record.model().name() == name) {
      user = id;
    }
  });
  if (!user.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", user, " uses \"", name, "\" and has not ended"));
  }
  draft.models.Erase(name);
  return std::string();
}

absl::Status NameTaken(const Dataset& dataset) {
  return absl::AlreadyExistsError(absl::StrCat(
      "\"", dataset.name(), "\" means other content (", dataset.file().path(),
      ", ", FormatBytes(dataset.file().size_bytes()),
      "); choose another name, or say that it is to be replaced"));
}

absl::Status Put(const ServiceContext& services,
                 const qlora::v1::PutDatasetRequest& request,
                 Dataset* response) {
  RETURN_IF_ERROR(CheckRegistryName(request.name()));
  google::protobuf::RepeatedPtrField<qlora::v1::ArtifactFile> files;
  *files.Add() = request.file();
  RETURN_IF_ERROR(services.admission->CheckUploaded(files));
  ASSIGN_OR_RETURN(const std::string stored,
                   services.coordinator->Mutate(
                       request.request_id(), RequestDigest(request),
                       [&](Draft& draft) -> absl::StatusOr<std::string> {
                         const Dataset* known =
                             draft.datasets.Find(request.name());
                         if (known != nullptr && known->file().sha256() ==
                                                     request.file().sha256()) {
                           return known->SerializeAsString();
                         }
                         if (known != nullptr && !request.replace()) {
                           return NameTaken(*known);
                         }
                         Dataset dataset;
                         dataset.set_name(request.name());
                         *dataset.mutable_file() = request.file();
                         *dataset.mutable_create_time() = ToProto(draft.now);
                         draft.datasets.Put(request.name(), dataset);
                         return dataset.SerializeAsString();
                       }));
  response->ParseFromString(stored);
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* ModelService::ImportModel(
    Context* context, const qlora::v1::ImportModelRequest* request,
    Model* response) {
  return Reply(services_, context,
               [=, this] { return Import(services_, *request, response); });
}

grpc::ServerUnaryReactor* ModelService::GetModel(
    Context* context, const qlora::v1::GetModelRequest* request,
    Model* response) {
  return Reply(services_, context, [=, this] {
    absl::Status status;
    services_.coordinator->Read([&](const State& state) {
      status = FindNamed(state.models, "model", request->name(), response);
    });
    return status;
  });
}

grpc::ServerUnaryReactor* ModelService::ListModels(
    Context* context, const qlora::v1::ListModelsRequest* request,
    qlora::v1::ListModelsResponse* response) {
  return Reply(services_, context, [=, this] {
    absl::Status status;
    services_.coordinator->Read([&](const State& state) {
      status = ListNamed(
          state.models, *request,
          [&](const Model& model) { *response->add_models() = model; },
          response->mutable_next_page_token());
    });
    return status;
  });
}

grpc::ServerUnaryReactor* ModelService::DeleteModel(
    Context* context, const qlora::v1::DeleteModelRequest* request,
    qlora::v1::DeleteModelResponse*) {
  return Reply(services_, context, [=, this] {
    return services_.coordinator
        ->Mutate(
            request->request_id(), RequestDigest(*request),
            [&](Draft& draft) { return EraseModel(draft, request->name()); })
        .status();
  });
}

grpc::ServerUnaryReactor* DatasetService::PutDataset(
    Context* context, const qlora::v1::PutDatasetRequest* request,
    Dataset* response) {
  return Reply(services_, context,
               [=, this] { return Put(services_, *request, response); });
}

grpc::ServerUnaryReactor* DatasetService::GetDataset(
    Context* context, const qlora::v1::GetDatasetRequest* request,
    Dataset* response) {
  return Reply(services_, context, [=, this] {
    absl::Status status;
    services_.coordinator->Read([&](const State& state) {
      status = FindNamed(state.datasets, "dataset", request->name(), response);
    });
    return status;
  });
}

grpc::ServerUnaryReactor* DatasetService::ListDatasets(
    Context* context, const qlora::v1::ListDatasetsRequest* request,
    qlora::v1::ListDatasetsResponse* response) {
  return Reply(services_, context, [=, this] {
    absl::Status status;
    services_.coordinator->Read([&](const State& state) {
      status = ListNamed(
          state.datasets, *request,
          [&](const Dataset& dataset) { *response->add_datasets() = dataset; },
          response->mutable_next_page_token());
    });
    return status;
  });
}

grpc::ServerUnaryReactor* DatasetService::DeleteDataset(
    Context* context, const qlora::v1::DeleteDatasetRequest* request,
    qlora::v1::DeleteDatasetResponse*) {
  return Reply(services_, context, [=, this] {
    return services_.coordinator
        ->Mutate(request->request_id(), RequestDigest(*request),
                 [&](Draft& draft) -> absl::StatusOr<std::string> {
                   if (draft.datasets.Find(request->name()) == nullptr) {
                     return absl::NotFoundError(
                         absl::StrCat("no dataset \"", request->name(), "\""));
                   }
                   draft.datasets.Erase(request->name());
                   return std::string();
                 })
        .status();
  });
}

grpc::ServerUnaryReactor* NodeService::ListNodes(
    grpc::CallbackServerContext* context, const qlora::v1::ListNodesRequest*,
    qlora::v1::ListNodesResponse* response) {
  return Reply(services_, context, [=, this] {
    for (auto& node : services_.coordinator->ListNodes()) {
      *response->add_nodes() = std::move(node);
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* NodeService::DeleteNode(
    grpc::CallbackServerContext* context,
    const qlora::v1::DeleteNodeRequest* request,
    qlora::v1::DeleteNodeResponse*) {
  return Reply(services_, context, [=, this] {
    return services_.coordinator
        ->Mutate(request->request_id(), RequestDigest(*request),
                 [&](Draft& draft) -> absl::StatusOr<std::string> {
                   RETURN_IF_ERROR(RemoveNode(draft, request->name()));
                   return std::string();
                 })
        .status();
  });
}

grpc::ServerUnaryReactor* CheckpointService::ListCheckpoints(
    grpc::CallbackServerContext* context,
    const qlora::v1::ListCheckpointsRequest* request,
    qlora::v1::ListCheckpointsResponse* response) {
  return Reply(services_, context, [=, this]() -> absl::Status {
    ASSIGN_OR_RETURN(const server::Job job,
                     services_.coordinator->FindJob(
                         request->job(), ProjectOf(request->project())));
    const std::string& id = job.job().job_id();
    services_.coordinator->Read([&](const State& state) {
      for (auto it = state.checkpoints.lower_bound({id, 0});
           it != state.checkpoints.end() && it->first.first == id; ++it) {
        auto& checkpoint = *response->add_checkpoints();
        checkpoint = it->second;
        checkpoint.set_head(it->first.second == job.job().head_step());
      }
    });
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ServerService::GetVersion(
    grpc::CallbackServerContext* context, const qlora::v1::GetVersionRequest*,
    qlora::v1::GetVersionResponse* response) {
  response->set_version(QLORA_VERSION);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace qlora::server
