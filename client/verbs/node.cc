#include <utility>

#include "absl/strings/str_cat.h"
#include "client/render.h"
#include "client/verbs.h"

namespace qlora::client {

absl::Status NodeList(Session& session) {
  const absl::StatusOr<v1::ListNodesResponse> nodes = session.connection().Call(
      session.connection().nodes(), &v1::NodeService::Stub::ListNodes,
      v1::ListNodesRequest());
  if (!nodes.ok()) return WithWhat(nodes.status(), "cannot list the nodes");
  return PrintList(session.output, *nodes, nodes->nodes(),
                   NodeView(absl::Now()));
}

absl::Status NodeRemove(Session& session, const std::string& name) {
  v1::DeleteNodeRequest request;
  request.set_request_id(NewRequestId());
  request.set_name(name);
  absl::Status removed = session.connection()
                             .Call(session.connection().nodes(),
                                   &v1::NodeService::Stub::DeleteNode, request)
                             .status();
  if (!removed.ok()) {
    return WithWhat(WithHint(std::move(removed), "qloractl node list"),
                    absl::StrCat("cannot remove node ", name));
  }
  *session.output.out << name << " removed" << std::endl;
  return absl::OkStatus();
}

}  // namespace qlora::client
