// RETURN_IF_ERROR and ASSIGN_OR_RETURN for functions that return absl::Status
// or absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define QLORA_CONCAT_INNER(a, b) a##b
#define QLORA_CONCAT(a, b) QLORA_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                      \
  do {                                             \
    absl::Status qlora_status_ = (expr);           \
    if (!qlora_status_.ok()) return qlora_status_; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, MakeX());
#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL(QLORA_CONCAT(qlora_status_or_, __LINE__), lhs, expr)

#define ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr)    \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = std::move(*tmp)
