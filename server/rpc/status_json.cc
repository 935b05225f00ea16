#include "server/rpc/status_json.h"

#include <google/protobuf/util/json_util.h>

#include "server/run/books_proto.h"

namespace signvote::rpc {

std::string RenderStatusJson(const run::StatusPage& page) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Cannot fail: every field of Status has a JSON form.
  (void)google::protobuf::util::MessageToJsonString(run::ToProto(page), &json, options);
  return json + "\n";
}

}  // namespace signvote::rpc
