#include "worker/trainer/parallel/sharded_block_source.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/spec/memory_plan.h"
#include "common/spec/model_files.h"
#include "worker/trainer/parallel/agreement.h"

namespace qlora::trainer {
namespace {

constexpr int kOuter = -1;

}  // namespace

// Brings all tensors into place. In each round every rank prepares one tensor,
// then each in turn hands its bytes out.
class ShardedBlockSource::Loader {
 public:
  Loader(ShardedBlockSource& source, const SafetensorsReader& reader,
         const kernels::ParallelFor& parallel_for)
      : source_(source), reader_(reader), parallel_for_(parallel_for) {
    for (const SlabTensor& t : source.outer_layout_.tensors) {
      items_.push_back({kOuter, &t});
    }
    for (int layer = 0; layer < source.model_.num_layers; ++layer) {
      for (const SlabTensor& t : source.block_layout_.tensors) {
        items_.push_back({layer, &t});
      }
    }
  }

  absl::Status Check() const {
    for (const Item& item : items_) {
      const std::string name = Prefix(item) + item.tensor->name;
      RETURN_IF_ERROR(
          CheckModelTensor(reader_.Find(name), name, item.tensor->shape));
    }
    return absl::OkStatus();
  }

  absl::Status Run() {
    const auto ranks = static_cast<size_t>(source_.communicator_.size());
    const auto mine = static_cast<size_t>(source_.communicator_.rank());
    for (size_t first = 0; first < items_.size(); first += ranks) {
      absl::StatusOr<std::vector<uint8_t>> image = std::vector<uint8_t>();
      if (first + mine < items_.size()) image = Prepare(items_[first + mine]);
      // One rank's refusal must reach those that wait for its bytes.
      RETURN_IF_ERROR(AgreeOn(source_.communicator_, image.status()));
      const size_t count = std::min(ranks, items_.size() - first);
      for (size_t r = 0; r < count; ++r) {
        const Item& item = items_[first + r];
        RETURN_IF_ERROR(item.layer == kOuter ? HandOutWhole(item, *image, r)
                                             : HandOutShards(item, *image, r));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Item {
    int layer;
    const SlabTensor* tensor;
    int64_t bytes() const { return tensor->end - tensor->begin; }
  };

  static std::string Prefix(const Item& item) {
    return item.layer == kOuter ? "" : BlockPrefix(item.layer);
  }

  absl::StatusOr<std::vector<uint8_t>> Prepare(const Item& item) const {
    std::vector<uint8_t> image(item.bytes());
    RETURN_IF_ERROR(ReadIntoSlab(reader_, Prefix(item), *item.tensor,
                                 source_.options_, parallel_for_, image));
    return image;
  }

  absl::Status HandOutWhole(const Item& item, std::span<const uint8_t> image,
                            size_t owner) {
    const std::span<uint8_t> place =
        source_.outer_.bytes().subspan(item.tensor->begin, item.bytes());
    if (source_.communicator_.rank() == static_cast<int>(owner)) {
      std::ranges::copy(image, place.begin());
    }
    if (source_.communicator_.size() == 1) return absl::OkStatus();
    source_.counts_.other_bytes += std::ssize(place);
    return source_.communicator_.Broadcast(place, static_cast<int>(owner));
  }

  // The bytes of the tensor that lie in rank's shard, from the slab's start.
  std::pair<int64_t, int64_t> Cut(const SlabTensor& tensor, int rank) const {
    const int64_t begin = rank * source_.shard_bytes_;
    const int64_t end = begin + source_.shard_bytes_;
    return {std::clamp(tensor.begin, begin, end),
            std::clamp(tensor.end, begin, end)};
  }

  absl::Status HandOutShards(const Item& item, std::span<const uint8_t> image,
                             size_t owner) {
    const int ranks = source_.communicator_.size();
    const int rank = source_.communicator_.rank();
    const int64_t part = std::min(item.bytes(), source_.shard_bytes_);
    std::vector<uint8_t> parts;
    if (rank == static_cast<int>(owner)) {
      parts.resize(part * ranks);
      for (int r = 0; r < ranks; ++r) {
        const auto [begin, end] = Cut(*item.tensor, r);
        if (begin == end) continue;
        std::ranges::copy(
            image.subspan(begin - item.tensor->begin, end - begin),
            parts.begin() + r * part);
      }
    }
    std::vector<uint8_t> received(part);
    RETURN_IF_ERROR(source_.communicator_.Scatter(parts, received,
                                                  static_cast<int>(owner)));
    const auto [begin, end] = Cut(*item.tensor, rank);
    std::copy_n(received.begin(), end - begin,
                source_.Shard(item.layer).begin() +
                    (begin - rank * source_.shard_bytes_));
    return absl::OkStatus();
  }

  ShardedBlockSource& source_;
  const SafetensorsReader& reader_;
  const kernels::ParallelFor& parallel_for_;
  std::vector<Item> items_;
};

ShardedBlockSource::ShardedBlockSource(const ModelDescription& model,
                                       const SlabOptions& options,
                                       Communicator& communicator)
    : model_(model),
      options_(options),
      communicator_(communicator),
      block_layout_(MakeBlockLayout(model, options)),
      outer_layout_(MakeOuterLayout(model, options)),
      shard_bytes_(
          kernels::SlabShardBytes(block_layout_.bytes, communicator.size())) {}

ShardedBlockSource::~ShardedBlockSource() {
  for (Slot& slot : slots_) {
    if (slot.pending) slot.pending->Wait().IgnoreError();
  }
}

absl::StatusOr<std::unique_ptr<ShardedBlockSource>> ShardedBlockSource::Load(
    const ModelDescription& model, const SafetensorsReader& reader,
    const SlabOptions& options, Communicator& communicator,
    const kernels::ParallelFor& parallel_for) {
  std::unique_ptr<ShardedBlockSource> source(
      new ShardedBlockSource(model, options, communicator));
  Loader loader(*source, reader, parallel_for);
  RETURN_IF_ERROR(loader.Check());
  RETURN_IF_ERROR(source->Allocate());
  RETURN_IF_ERROR(loader.Run());
  return source;
}

absl::Status ShardedBlockSource::Allocate() {
  ASSIGN_OR_RETURN(shards_,
                   AlignedBuffer::Create(shard_bytes_ * model_.num_layers,
                                         "this rank's shard of the base"));
  // What fills up the last shard is gathered too: give it a value.
  std::ranges::fill(shards_.bytes(), 0);
  ASSIGN_OR_RETURN(
      outer_, AlignedBuffer::Create(outer_layout_.bytes, "embedding and head"));
  if (communicator_.size() == 1) return absl::OkStatus();
  slots_.resize(std::min(model_.num_layers, kGatheredBlocks));
  for (Slot& slot : slots_) {
    ASSIGN_OR_RETURN(slot.slab, AlignedBuffer::Create(gathered_slab_bytes(),
                                                      "a gathered block"));
  }
  return absl::OkStatus();
}

int64_t ShardedBlockSource::gathered_slab_bytes() const {
  return shard_bytes_ * communicator_.size();
}

std::span<uint8_t> ShardedBlockSource::Shard(int layer) const {
  return shards_.bytes().subspan(layer * shard_bytes_, shard_bytes_);
}

ShardedBlockSource::Slot* ShardedBlockSource::FindSlot(int layer) {
  const auto it = std::ranges::find(slots_, layer, &Slot::layer);
  return it == slots_.end() ? nullptr : &*it;
}

absl::StatusOr<ShardedBlockSource::Slot*> ShardedBlockSource::StartGather(
    int layer) {
  if (Slot* slot = FindSlot(layer)) {
    slot->last_use = ++uses_;
    return slot;
  }
  Slot* oldest = nullptr;
  for (Slot& slot : slots_) {
    const bool free = slot.users == 0 && slot.pending == nullptr;
    if (free && (oldest == nullptr || slot.last_use < oldest->last_use)) {
      oldest = &slot;
    }
  }
  if (oldest == nullptr) return oldest;
  oldest->layer = layer;
  oldest->last_use = ++uses_;
  const std::span<uint8_t> slab = oldest->slab.bytes();
  ASSIGN_OR_RETURN(oldest->pending,
                   communicator_.AllGatherAsync(Shard(layer), slab));
  counts_.block_bytes += std::ssize(slab);
  ++counts_.gathers;
  return oldest;
}

void ShardedBlockSource::Prefetch(int layer) {
  if (slots_.empty() || layer < 0 || layer >= model_.num_layers) return;
  prefetch_error_.Update(StartGather(layer).status());
}

absl::StatusOr<BlockWeights> ShardedBlockSource::Acquire(int layer) {
  if (slots_.empty()) {
    return ViewBlock(model_, block_layout_, Shard(layer).data());
  }
  RETURN_IF_ERROR(prefetch_error_);
  ASSIGN_OR_RETURN(Slot* const slot, StartGather(layer));
  if (slot == nullptr) {
    return absl::InternalError(
        absl::StrCat("block ", layer, " was acquired while ", slots_.size(),
                     " others were in use or being gathered"));
  }
  if (slot->pending != nullptr) {
    const absl::Status status = slot->pending->Wait();
    slot->pending.reset();
    RETURN_IF_ERROR(status);
  }
  ++slot->users;
  return ViewBlock(model_, block_layout_, slot->slab.bytes().data());
}

void ShardedBlockSource::Release(int layer) {
  if (Slot* slot = FindSlot(layer)) --slot->users;
}

absl::StatusOr<OuterWeights> ShardedBlockSource::AcquireOuter() {
  return ViewOuter(model_, outer_layout_, outer_.bytes().data());
}

}  // namespace qlora::trainer
