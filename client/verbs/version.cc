#include "client/verbs.h"

namespace qlora::client {

absl::Status Version(Session& session) {
  *session.output.out << "qloractl " << QLORA_VERSION << "\n";
  return absl::OkStatus();
}

}  // namespace qlora::client
