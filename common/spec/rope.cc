#include "common/spec/rope.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "common/formats/json_fields.h"

namespace qlora {
namespace {

using Json = nlohmann::json;

// transformers 5 writes rope_parameters, for some models once for each type of
// layer; before, there was rope_scaling beside a top-level rope_theta.
const Json& RopeObject(const Json& config, std::string& name) {
  static const Json kNone = Json::object();
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!config.contains(key) || config[key].is_null()) continue;
    name = key;
    const Json& value = config[key];
    if (value.is_object() && value.contains("full_attention") &&
        value["full_attention"].is_object()) {
      name += ".full_attention";
      return value["full_attention"];
    }
    return value;
  }
  return kNone;
}

// All in float32, in the order of transformers' modeling_rope_utils.
void ScaleLlama3(JsonFields& rope, std::vector<float>& inv_freq) {
  const auto factor = static_cast<float>(rope.Number("factor", 1, 1e6));
  const double low = rope.Positive("low_freq_factor");
  const double high = rope.Positive("high_freq_factor");
  const auto context = static_cast<double>(
      rope.Integer("original_max_position_embeddings", 1, 1 << 30));
  if (low >= high) {
    rope.Fail("low_freq_factor",
              absl::StrCat("is ", low, ", not below high_freq_factor, ", high));
    return;
  }
  for (float& f : inv_freq) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / f;
    if (wavelength < static_cast<float>(context / high)) continue;
    if (wavelength > static_cast<float>(context / low)) {
      f /= factor;
      continue;
    }
    const float smooth =
        (static_cast<float>(context) / wavelength - static_cast<float>(low)) /
        static_cast<float>(high - low);
    f = (1 - smooth) * f / factor + smooth * f;
  }
}

}  // namespace

Rope ReadRope(const Json& config, int head_dim, const std::string& prefix,
              absl::Status& status) {
  std::string name;
  const Json& object = RopeObject(config, name);
  JsonFields top(config, prefix, status);
  if (!object.is_object()) {
    top.Fail(name.c_str(), "must be an object, not " + ShownJson(object));
    return {};
  }
  JsonFields rope(object, absl::StrCat(prefix, name, "."), status);
  const double theta = rope.Has("rope_theta")
                           ? rope.Positive("rope_theta")
                           : top.Positive("rope_theta", 10000.0);
  const double partial = rope.Has("partial_rotary_factor")
                             ? rope.Positive("partial_rotary_factor")
                             : top.Positive("partial_rotary_factor", 1.0);
  if (partial != 1.0) {
    top.Refuse("partial_rotary_factor",
               absl::StrCat("is ", partial, "; only 1 is supported"));
  }
  Rope out;
  std::vector<float>& inv_freq = out.inv_freq;
  inv_freq.resize(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    const float exponent =
        static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inv_freq[i] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  const char* type_key = rope.Has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.String(type_key, "default");
  if (type == "linear") {
    out.length_factor = rope.Number("factor", 1, 1e6);
    for (float& f : inv_freq) f /= static_cast<float>(out.length_factor);
  } else if (type == "llama3") {
    ScaleLlama3(rope, inv_freq);
  } else if (type != "default") {
    rope.Refuse(type_key,
                absl::StrCat("is ", ShownJson(type),
                             "; supported are default, linear and llama3"));
  }
  return out;
}

}  // namespace qlora
