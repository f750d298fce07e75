// Packs documents into rows by first fit. Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace qlora::trainer {

// Puts each document, in order, into the first row that has room for it.
// Lengths lie in [1, capacity]. Gives the documents of each row; rows are in
// the order of their first documents. O(n log n).
std::vector<std::vector<int64_t>> PackFirstFit(
    const std::vector<int64_t>& lengths, int64_t capacity);

}  // namespace qlora::trainer
