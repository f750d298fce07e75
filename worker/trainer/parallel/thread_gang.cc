// A gang of threads: each rank posts its buffers, waits for the others, copies
// what it needs out of theirs, and waits again before the buffers may go.
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "worker/trainer/parallel/communicator.h"

namespace qlora::trainer {
namespace {

class Meeting {
 public:
  explicit Meeting(int size) : posted_(size) {}

  int size() const { return static_cast<int>(posted_.size()); }

  // Waits until all ranks have posted, lets everyone read, waits again.
  absl::Status Exchange(
      int rank, std::span<const uint8_t> mine,
      const std::function<
          absl::Status(const std::vector<std::span<const uint8_t>>&)>& read) {
    RETURN_IF_ERROR(Arrive(rank, &mine));
    const absl::Status result = read(posted_);
    RETURN_IF_ERROR(Arrive(rank, nullptr));
    return result;
  }

  void Leave() {
    MutexLock lock(&mu_);
    broken_ = true;
    changed_.SignalAll();
  }

 private:
  absl::Status Arrive(int rank, const std::span<const uint8_t>* mine) {
    MutexLock lock(&mu_);
    if (mine != nullptr) posted_[rank] = *mine;
    const int64_t round = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++round_;
      changed_.SignalAll();
    }
    while (round_ == round && !broken_) changed_.Wait(&mu_);
    if (round_ == round) return absl::UnavailableError("a peer rank is gone");
    return absl::OkStatus();
  }

  Mutex mu_;
  CondVar changed_;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t round_ ABSL_GUARDED_BY(mu_) = 0;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  // Written before a round's end, read after it.
  std::vector<std::span<const uint8_t>> posted_;
};

class DonePending : public Communicator::Pending {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<Meeting> meeting)
      : rank_(rank), meeting_(std::move(meeting)) {}
  ~ThreadCommunicator() override { meeting_->Leave(); }

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size(); }

  absl::StatusOr<std::unique_ptr<Pending>> AllGatherAsync(
      std::span<const uint8_t> in, std::span<uint8_t> out) override {
    RETURN_IF_ERROR(
        meeting_->Exchange(rank_, in, [&](const auto& all) -> absl::Status {
          if (out.size() != in.size() * all.size()) return SizeError();
          for (size_t r = 0; r < all.size(); ++r) {
            if (all[r].size() != in.size()) return SizeError();
            std::ranges::copy(all[r], out.begin() + r * in.size());
          }
          return absl::OkStatus();
        }));
    return std::make_unique<DonePending>();
  }

  absl::Status AllReduceSum(std::span<float> values) override {
    return Reduce(values, std::plus<float>());
  }
  absl::Status AllReduceSum(std::span<double> values) override {
    return Reduce(values, std::plus<double>());
  }
  absl::Status AllReduceMax(std::span<int64_t> values) override {
    return Reduce(values, [](int64_t a, int64_t b) { return std::max(a, b); });
  }

  absl::Status Broadcast(std::span<uint8_t> bytes, int root) override {
    return meeting_->Exchange(rank_, bytes, [&](const auto& all) {
      if (all[root].size() != bytes.size()) return SizeError();
      if (rank_ != root) std::ranges::copy(all[root], bytes.begin());
      return absl::OkStatus();
    });
  }

  absl::Status Scatter(std::span<const uint8_t> in, std::span<uint8_t> out,
                       int root) override {
    return meeting_->Exchange(rank_, in, [&](const auto& all) {
      if (all[root].size() != out.size() * all.size()) return SizeError();
      std::ranges::copy(all[root].subspan(rank_ * out.size(), out.size()),
                        out.begin());
      return absl::OkStatus();
    });
  }

  void SetTimeout(absl::Duration) override {}

 private:
  static absl::Status SizeError() {
    return absl::InvalidArgumentError("ranks gave buffers of different sizes");
  }

  template <typename T, typename Op>
  absl::Status Reduce(std::span<T> values, Op op) {
    std::vector<T> result(values.size());
    const std::span<const uint8_t> bytes(
        reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes());
    RETURN_IF_ERROR(meeting_->Exchange(rank_, bytes, [&](const auto& all) {
      for (size_t r = 0; r < all.size(); ++r) {
        if (all[r].size() != bytes.size()) return SizeError();
        const T* other = reinterpret_cast<const T*>(all[r].data());
        for (size_t i = 0; i < result.size(); ++i) {
          result[i] = r == 0 ? other[i] : op(result[i], other[i]);
        }
      }
      return absl::OkStatus();
    }));
    std::ranges::copy(result, values.begin());
    return absl::OkStatus();
  }

  const int rank_;
  const std::shared_ptr<Meeting> meeting_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeThreadGang(int size) {
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Communicator>> gang;
  for (int rank = 0; rank < size; ++rank) {
    gang.push_back(std::make_unique<ThreadCommunicator>(rank, meeting));
  }
  return gang;
}

}  // namespace qlora::trainer
