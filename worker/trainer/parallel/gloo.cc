// The only file that sees c10d. Gloo's code is inside libtorch_cpu; its headers
// are Debian's, and libgloo is never linked.
#define USE_C10D_GLOO 1

#include <charconv>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ATen/core/Tensor.h"
#include "ATen/ops/from_blob.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "torch/csrc/distributed/c10d/PrefixStore.hpp"
#include "torch/csrc/distributed/c10d/ProcessGroupGloo.hpp"
#include "torch/csrc/distributed/c10d/TCPStore.hpp"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/torch_guard.h"

namespace qlora::trainer {
namespace {

using WorkPtr = c10::intrusive_ptr<c10d::Work>;

template <typename T>
at::Tensor View(std::span<T> values, at::ScalarType type) {
  return at::from_blob(const_cast<std::remove_const_t<T>*>(values.data()),
                       {static_cast<int64_t>(values.size())},
                       at::TensorOptions().dtype(type));
}

class GlooPending : public Communicator::Pending {
 public:
  explicit GlooPending(WorkPtr work) : work_(std::move(work)) {}
  absl::Status Wait() override {
    return TorchGuard("gathering from the other ranks", [&] { work_->wait(); });
  }

 private:
  const WorkPtr work_;
};

class GlooCommunicator : public Communicator {
 public:
  explicit GlooCommunicator(c10::intrusive_ptr<c10d::ProcessGroupGloo> group)
      : group_(std::move(group)) {}

  int rank() const override { return group_->getRank(); }
  int size() const override { return group_->getSize(); }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherAsync(
      std::span<const uint8_t> in, std::span<uint8_t> out) override {
    return TorchGuard("gathering from the other ranks",
                      [&]() -> absl::StatusOr<std::unique_ptr<Pending>> {
                        if (out.size() != in.size() * size())
                          return SizeError();
                        at::Tensor in_tensor = View(in, at::kByte);
                        at::Tensor out_tensor = View(out, at::kByte);
                        return std::make_unique<GlooPending>(
                            group_->_allgather_base(out_tensor, in_tensor));
                      });
  }

  absl::Status AllReduceSum(std::span<float> values) override {
    return AllReduce(View(values, at::kFloat), c10d::ReduceOp::SUM);
  }
  absl::Status AllReduceSum(std::span<double> values) override {
    return AllReduce(View(values, at::kDouble), c10d::ReduceOp::SUM);
  }
  absl::Status AllReduceMax(std::span<int64_t> values) override {
    return AllReduce(View(values, at::kLong), c10d::ReduceOp::MAX);
  }

  absl::Status Broadcast(std::span<uint8_t> bytes, int root) override {
    return TorchGuard("broadcasting to the other ranks", [&] {
      std::vector<at::Tensor> tensors = {View(bytes, at::kByte)};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      group_->broadcast(tensors, options)->wait();
    });
  }

  absl::Status Scatter(std::span<const uint8_t> in, std::span<uint8_t> out,
                       int root) override {
    return TorchGuard("scattering to the other ranks", [&]() -> absl::Status {
      std::vector<std::vector<at::Tensor>> parts;
      if (rank() == root) {
        if (in.size() != out.size() * size()) return SizeError();
        parts.emplace_back();
        for (int r = 0; r < size(); ++r) {
          parts[0].push_back(
              View(in.subspan(r * out.size(), out.size()), at::kByte));
        }
      }
      std::vector<at::Tensor> result = {View(out, at::kByte)};
      c10d::ScatterOptions options;
      options.rootRank = root;
      group_->scatter(result, parts, options)->wait();
      return absl::OkStatus();
    });
  }

  void SetTimeout(absl::Duration timeout) override {
    group_->setTimeout(
        std::chrono::milliseconds(absl::ToInt64Milliseconds(timeout)));
  }

 private:
  static absl::Status SizeError() {
    return absl::InvalidArgumentError("ranks gave buffers of different sizes");
  }

  // Gloo's ring sums every element on one rank, in an order that depends only
  // on the sizes, and hands the sum to the others.
  absl::Status AllReduce(at::Tensor values, c10d::ReduceOp op) {
    return TorchGuard("reducing over the other ranks", [&] {
      std::vector<at::Tensor> tensors = {std::move(values)};
      c10d::AllreduceOptions options;
      options.reduceOp = std::move(op);
      group_->allreduce(tensors, options)->wait();
    });
  }

  const c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

absl::StatusOr<std::pair<std::string, uint16_t>> SplitAddress(
    const std::string& address) {
  const size_t colon = address.rfind(':');
  uint16_t port = 0;
  const char* end = address.data() + address.size();
  if (colon == std::string::npos || colon == 0 ||
      std::from_chars(address.data() + colon + 1, end, port).ptr != end ||
      port == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rendezvous address \"", address, "\" is not of the form host:port"));
  }
  return std::make_pair(address.substr(0, colon), port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(
    const GlooOptions& options) {
  ASSIGN_OR_RETURN(const auto address,
                   SplitAddress(options.rendezvous_address));
  const std::chrono::milliseconds timeout(
      absl::ToInt64Milliseconds(options.timeout));
  const std::string what =
      absl::StrCat("rank ", options.rank, " joining ", options.world_size,
                   " ranks at ", options.rendezvous_address);
  return TorchGuard(
      what, [&]() -> absl::StatusOr<std::unique_ptr<Communicator>> {
        c10d::TCPStoreOptions store_options;
        store_options.port = address.second;
        store_options.isServer = options.rank == 0;
        store_options.numWorkers = options.world_size;
        store_options.waitWorkers = false;
        store_options.timeout = timeout;
        if (options.rank == 0 && options.listen_fd >= 0) {
          store_options.masterListenFd = options.listen_fd;
        }
        auto store =
            c10::make_intrusive<c10d::TCPStore>(address.first, store_options);
        auto prefixed = c10::make_intrusive<c10d::PrefixStore>(
            options.prefix, std::move(store));
        auto group_options = c10d::ProcessGroupGloo::Options::create(timeout);
        group_options->devices = {
            c10d::ProcessGroupGloo::createDeviceForHostname(
                options.data_plane_host)};
        return std::make_unique<GlooCommunicator>(
            c10::make_intrusive<c10d::ProcessGroupGloo>(
                std::move(prefixed), options.rank, options.world_size,
                std::move(group_options)));
      });
}

}  // namespace qlora::trainer
