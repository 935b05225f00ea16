#include "server/rpc/probe.h"

#include <google/protobuf/util/json_util.h>

namespace signvote::rpc {

std::string RenderStatusJson(const v1::Status& status) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Cannot fail: every field of Status has a JSON form.
  (void)google::protobuf::util::MessageToJsonString(status, &json, options);
  return json + "\n";
}

}  // namespace signvote::rpc
