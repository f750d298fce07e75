#include "worker/trainer/text_stream.h"

#include "common/base/status_macros.h"

namespace qlora::trainer {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

}  // namespace

absl::StatusOr<std::string> TextStream::Unsent() const {
  const std::span<const int32_t> tokens(tokens_);
  ASSIGN_OR_RETURN(const std::string sent,
                   decode_(tokens.subspan(context_, sent_ - context_)));
  ASSIGN_OR_RETURN(const std::string all, decode_(tokens.subspan(context_)));
  return all.size() > sent.size() ? all.substr(sent.size()) : "";
}

absl::StatusOr<std::string> TextStream::Add(int32_t token) {
  tokens_.push_back(token);
  ASSIGN_OR_RETURN(std::string text, Unsent());
  if (text.empty() || text.ends_with(kReplacement)) return "";
  context_ = sent_;
  sent_ = tokens_.size();
  return text;
}

absl::StatusOr<std::string> TextStream::Flush() {
  ASSIGN_OR_RETURN(std::string text, Unsent());
  context_ = sent_ = tokens_.size();
  return text;
}

}  // namespace qlora::trainer
