#include "worker/trainer/parallel/communicator.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace qlora::trainer {
namespace {

class DonePending : public Communicator::Pending {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
};

class SingleCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  absl::StatusOr<std::unique_ptr<Pending>> AllGatherAsync(
      std::span<const uint8_t> in, std::span<uint8_t> out) override {
    RETURN_IF_ERROR(Copy(in, out));
    return std::make_unique<DonePending>();
  }
  absl::Status AllReduceSum(std::span<float>) override {
    return absl::OkStatus();
  }
  absl::Status AllReduceSum(std::span<double>) override {
    return absl::OkStatus();
  }
  absl::Status AllReduceMax(std::span<int64_t>) override {
    return absl::OkStatus();
  }
  absl::Status Broadcast(std::span<uint8_t>, int) override {
    return absl::OkStatus();
  }
  absl::Status Scatter(std::span<const uint8_t> in, std::span<uint8_t> out,
                       int) override {
    return Copy(in, out);
  }
  void SetTimeout(absl::Duration) override {}

 private:
  static absl::Status Copy(std::span<const uint8_t> in,
                           std::span<uint8_t> out) {
    if (in.size() != out.size()) {
      return absl::InvalidArgumentError(
          "a gang of one needs an output as large as its input");
    }
    std::copy(in.begin(), in.end(), out.begin());
    return absl::OkStatus();
  }
};

}  // namespace

absl::Status Communicator::AllGather(std::span<const uint8_t> in,
                                     std::span<uint8_t> out) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Pending> pending,
                   AllGatherAsync(in, out));
  return pending->Wait();
}

std::unique_ptr<Communicator> MakeSingleCommunicator() {
  return std::make_unique<SingleCommunicator>();
}

}  // namespace qlora::trainer
