#include "absl/strings/str_cat.h"
#include "client/verbs.h"
#include "common/base/status_macros.h"
#include "common/spec/job_keys.h"

namespace qlora::client {

absl::Status Explain(Session& session, const std::string& key) {
  const absl::StatusOr<std::string> text = ExplainJobKey(key);
  if (!text.ok()) {
    return WithHint(WithWhat(text.status(), absl::StrCat("no key ", key)),
                    "qloractl explain");
  }
  *session.output.out << *text;
  return absl::OkStatus();
}

}  // namespace qlora::client
