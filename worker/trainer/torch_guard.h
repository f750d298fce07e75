// The one place where exceptions of LibTorch become Status. Include it in .cc
// files only.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "c10/util/Exception.h"

namespace qlora::trainer {

// ResourceExhausted: no memory; Unavailable: a peer or the network;
// DeadlineExceeded: a peer did not answer in time; else Internal.
inline absl::Status ExceptionToStatus(std::string_view what,
                                      const std::exception& e) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&e);
  const std::string text =
      torch_error ? torch_error->what_without_backtrace() : e.what();
  const std::string message = absl::StrCat(std::string(what), ": ", text);
  const auto mentions = [&](std::string_view word) {
    return text.find(word) != std::string::npos;
  };
  if (dynamic_cast<const std::bad_alloc*>(&e) != nullptr ||
      dynamic_cast<const c10::OutOfMemoryError*>(&e) != nullptr ||
      mentions("allocate memory") || mentions("out of memory")) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory is left: ", message));
  }
  if (mentions("imed out") || mentions("timeout")) {
    return absl::DeadlineExceededError(message);
  }
  if (dynamic_cast<const c10::DistError*>(&e) != nullptr || mentions("gloo")) {
    return absl::UnavailableError(message);
  }
  return absl::InternalError(message);
}

// Calls fn(), which returns absl::Status, absl::StatusOr<T> or nothing, and
// turns an exception into a Status that begins with `what`.
template <typename F>
auto TorchGuard(std::string_view what, F&& fn) {
  using Result = std::invoke_result_t<F>;
  using Return =
      std::conditional_t<std::is_void_v<Result>, absl::Status, Result>;
  try {
    if constexpr (std::is_void_v<Result>) {
      std::forward<F>(fn)();
      return absl::OkStatus();
    } else {
      return Return(std::forward<F>(fn)());
    }
  } catch (const std::exception& e) {
    return Return(ExceptionToStatus(what, e));
  }
}

}  // namespace qlora::trainer
