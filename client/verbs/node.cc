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

}  // namespace qlora::client
