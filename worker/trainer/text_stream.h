// Turns tokens into text piece by piece, so that the pieces put together are
// the text of all tokens and none ends inside a character. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qlora::trainer {

class TextStream {
 public:
  using Decode =
      std::function<absl::StatusOr<std::string>(std::span<const int32_t>)>;

  explicit TextStream(Decode decode) : decode_(std::move(decode)) {}

  // The text that this token completes; often empty inside a character.
  absl::StatusOr<std::string> Add(int32_t token);
  // What is left; an incomplete character comes as U+FFFD.
  absl::StatusOr<std::string> Flush();

 private:
  // The text behind what was given out already.
  absl::StatusOr<std::string> Unsent() const;

  const Decode decode_;
  std::vector<int32_t> tokens_;
  // Tokens before sent_ were given out; those from context_ on are decoded
  // again with the next ones, because a decoder treats the first token of a
  // text differently.
  size_t context_ = 0;
  size_t sent_ = 0;
};

}  // namespace qlora::trainer
