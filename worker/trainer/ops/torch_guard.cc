#include "worker/trainer/ops/torch_guard.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <new>

#include "absl/strings/str_cat.h"

namespace qlora::trainer {

absl::Status GuardTorch(absl::FunctionRef<absl::Status()> f) {
  try {
    const c10::InferenceMode mode;
    return f();
  } catch (const c10::OutOfMemoryError& e) {
    return absl::ResourceExhaustedError(e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of host memory");
  } catch (const c10::Error& e) {
    return absl::InternalError(
        absl::StrCat("LibTorch: ", e.what_without_backtrace()));
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

}  // namespace qlora::trainer
