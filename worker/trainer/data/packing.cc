#include "worker/trainer/data/packing.h"

#include <algorithm>
#include <bit>

namespace qlora::trainer {
namespace {

// A tree of maxima over the room that is left in each row. Rows that no
// document is in yet have all of it, so the first fit opens the next one.
class RoomTree {
 public:
  RoomTree(size_t rows, int64_t capacity)
      : leaves_(std::bit_ceil(std::max<size_t>(rows, 1))),
        room_(2 * leaves_, capacity) {}

  // Takes `length` from the first row with that much room.
  int64_t Take(int64_t length) {
    size_t node = 1;
    while (node < leaves_) {
      node = 2 * node + (room_[2 * node] < length ? 1 : 0);
    }
    const auto row = static_cast<int64_t>(node - leaves_);
    room_[node] -= length;
    for (node /= 2; node > 0; node /= 2) {
      room_[node] = std::max(room_[2 * node], room_[2 * node + 1]);
    }
    return row;
  }

 private:
  const size_t leaves_;
  // Node i has children 2i and 2i + 1; leaves begin at leaves_.
  std::vector<int64_t> room_;
};

}  // namespace

std::vector<std::vector<int64_t>> PackFirstFit(
    const std::vector<int64_t>& lengths, int64_t capacity) {
  RoomTree tree(lengths.size(), capacity);
  std::vector<std::vector<int64_t>> rows;
  for (size_t d = 0; d < lengths.size(); ++d) {
    const auto row = static_cast<size_t>(tree.Take(lengths[d]));
    if (row == rows.size()) rows.emplace_back();
    rows[row].push_back(static_cast<int64_t>(d));
  }
  return rows;
}

}  // namespace qlora::trainer
