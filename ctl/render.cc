#include "ctl/render.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ctl/format.h"
#include "ctl/rule_text.h"

namespace signvote::ctl {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

nlohmann::ordered_json ToJson(const Message& message);

nlohmann::ordered_json NumberOrNull(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json FieldJson(const Message& message, const FieldDescriptor* field) {
  const Reflection* r = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT64: {
      const uint64_t value = r->GetUInt64(message, field);
      if (field->type() == FieldDescriptor::TYPE_FIXED64) return absl::StrFormat("%016x", value);
      return value;
    }
    case FieldDescriptor::CPPTYPE_INT64:
      return r->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return r->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT32:
      return r->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberOrNull(r->GetDouble(message, field));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return NumberOrNull(static_cast<double>(r->GetFloat(message, field)));
    case FieldDescriptor::CPPTYPE_BOOL:
      return r->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int number = r->GetEnumValue(message, field);
      const EnumValueDescriptor* value = field->enum_type()->FindValueByNumber(number);
      return value == nullptr ? nlohmann::ordered_json(number)
                              : nlohmann::ordered_json(EnumWord(value));
    }
    case FieldDescriptor::CPPTYPE_STRING:
      return r->GetString(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(r->GetMessage(message, field));
  }
  return nullptr;
}

nlohmann::ordered_json ToJson(const Message& message) {
  const auto* descriptor = message.GetDescriptor();
  const Reflection* r = message.GetReflection();
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (!field->is_repeated()) {
      json[field->name()] = FieldJson(message, field);
      continue;
    }
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    // Status and Event repeat messages only.
    for (int k = 0; k < r->FieldSize(message, field); ++k) {
      list.push_back(ToJson(r->GetRepeatedMessage(message, field, k)));
    }
    json[field->name()] = std::move(list);
  }
  return json;
}

constexpr size_t kColumns = 80, kLabelColumns = 10;
constexpr char kBold[] = "1", kGreen[] = "32", kYellow[] = "33", kRed[] = "31", kDim[] = "2";

class Painter {
 public:
  explicit Painter(Colour colour) : on_(colour == Colour::kOn) {}
  std::string operator()(const char* code, const std::string& text) const {
    return on_ ? "\x1b[" + std::string(code) + "m" + text + "\x1b[0m" : text;
  }

 private:
  const bool on_;
};

const char* PhaseColour(v1::Status::Phase phase) {
  switch (phase) {
    case v1::Status::PHASE_ROUND_OPEN:
    case v1::Status::PHASE_ENDED:
      return kGreen;
    default:
      return kYellow;
  }
}

}  // namespace

std::string RenderTable(const v1::Status& status, Colour colour) {
  const Painter paint(colour);
  std::string out;
  const auto row = [&](const char* label, const std::string& text) {
    out += paint(kDim, Left(label, kLabelColumns)) + text + "\n";
  };

  std::string phase = EnumWord(v1::Status::Phase_descriptor()->FindValueByNumber(
      v1::Status::Phase_IsValid(status.phase()) ? status.phase() : v1::Status::PHASE_UNSPECIFIED));
  std::replace(phase.begin(), phase.end(), '_', ' ');
  row("run", (status.run_id().empty() ? "-" : status.run_id()) +
                 absl::StrFormat("  epoch %d, up ", status.epoch()) +
                 SecondsText(status.uptime_seconds()));
  row("phase", paint(PhaseColour(status.phase()), Left(phase, 20)) + "  server " +
                   status.software_version());

  std::string round = Grouped(status.main_round());
  if (status.main_rounds() > 0) {
    const double done = 100.0 * static_cast<double>(status.main_round()) /
                        static_cast<double>(status.main_rounds());
    round += " of " + Grouped(status.main_rounds()) + absl::StrFormat(" (%.0f %%)", done);
  }
  if (status.attempt() > 0) round += absl::StrFormat(", attempt %d", status.attempt());
  row("main",
      paint(kBold, Left(round, 20)) + "  " +
          (status.round_seconds() > 0 ? SecondsText(status.round_seconds()) + " a round, " : "") +
          (status.seconds_left() > 0 ? SecondsText(status.seconds_left()) + " left"
                                     : "time left unknown"));
  if (status.round() != status.main_round())
    row("commits", Grouped(status.round()) + ", with those that are no main rounds");
  if (const std::string race = RaceText(status.race()); !race.empty()) row("race", race);
  row("loss",
      paint(kBold, Left(NumberOrDash("%.4f", status.round() > 0 ? status.loss() : NAN), 20)) +
          "  stepsize " + NumberOrDash("%.4g", status.stepsize()) + " (" + status.rule() + ", " +
          status.direction() + ")");
  const char* label = "rule";
  for (const std::string& line : Wrapped(RuleText(status), kColumns - kLabelColumns)) {
    row(std::exchange(label, ""), line);
  }
  label = "warning";
  for (const std::string& line : Wrapped(status.stepsize_warning(), kColumns - kLabelColumns)) {
    row(std::exchange(label, ""), paint(kYellow, line));
  }
  const v1::HeldOut& held_out = status.held_out();
  if (status.has_held_out() && std::isfinite(held_out.loss())) {
    row("held out",
        paint(kBold, Left(absl::StrFormat("%.4f ± %.4f", held_out.loss(), held_out.error()), 20)) +
            "  round " + Grouped(held_out.round()) + ", by " + CutTo(held_out.worker(), 24));
    row("windows", absl::StrFormat("%016x", held_out.windows()));
  } else if (!status.evaluator().empty()) {
    row("held out", Left("-", 20) + "  " + CutTo(status.evaluator(), 24) + " measures it");
  }
  row("model", status.coordinates() == 0
                   ? std::string("-")
                   : Left(Grouped(status.coordinates()), 20) +
                         absl::StrFormat("  coordinates, layout %016x", status.layout_digest()));
  const v1::WireTotals& wire = status.wire();
  const double moved =
      static_cast<double>(wire.up_rounds_bytes()) + static_cast<double>(wire.down_rounds_bytes());
  const double fp32 = 2.0 * static_cast<double>(wire.fp32_equivalent_bytes());
  row("wire", moved > 0 && fp32 > 0
                  ? paint(kBold, Left(absl::StrFormat("%.1f x less", fp32 / moved), 20)) + "  " +
                        BytesText(static_cast<double>(wire.up_rounds_bytes())) + " up + " +
                        BytesText(static_cast<double>(wire.down_rounds_bytes())) +
                        " down; fp32: " + BytesText(fp32)
                  : std::string("-"));
  if (status.up_bits() > 0) {
    row("bits", paint(kBold, Left(absl::StrFormat("%.3g up", status.up_bits()), 20)) +
                    absl::StrFormat("  %.3g down, a parameter and minibatch (%s)",
                                    status.down_bits(), Grouped(status.minibatches())));
  }
  row("workers", Left(absl::StrFormat("%d joined", status.joins()), 20) +
                     absl::StrFormat("  %d lost, %d abstentions, %d late chunks", status.losses(),
                                     status.abstentions(), status.late_chunks()));
  if (status.workers().empty()) return out;

  // 16 + 9 + 5 + 8 + 6 + 7 + 9 + 9 + 10 = 79 columns.
  out += "\n" +
         paint(kDim, Left("worker", 15) + " " + Left("role", 9) + Right("share", 5) +
                         Right("ballots", 8) + Right("abst", 6) + Right("agree", 7) +
                         Right("up", 9) + Right("down", 9) + Right("arrival", 10)) +
         "\n";
  for (const v1::Worker& worker : status.workers()) {
    const bool observer = worker.role() == v1::Worker::ROLE_OBSERVER;
    const char* role = !worker.connected() ? "lost" : observer ? "observer" : "member";
    const char* role_colour = !worker.connected() ? kRed : observer ? kYellow : kGreen;
    const std::string agreement = worker.ballots() == 0 || !std::isfinite(worker.agreement())
                                      ? "-"
                                      : absl::StrFormat("%.1f%%", 100.0 * worker.agreement());
    out += Left(worker.name(), 15) + " " + paint(role_colour, Left(role, 9)) +
           Right(std::to_string(worker.share()), 5) + Right(std::to_string(worker.ballots()), 8) +
           Right(std::to_string(worker.abstentions()), 6) + Right(agreement, 7) +
           Right(BytesText(static_cast<double>(worker.wire().up_rounds_bytes())), 9) +
           Right(BytesText(static_cast<double>(worker.wire().down_rounds_bytes())), 9) +
           Right(worker.ballots() == 0 ? "-" : SecondsText(worker.arrival_seconds()), 10) + "\n";
  }
  return out;
}

std::string RenderJson(const v1::Status& status) {
  return ToJson(status).dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

std::string RenderJsonLine(const v1::WatchReply& reply) {
  nlohmann::ordered_json json = ToJson(reply.status());
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  for (const v1::Event& event : reply.events()) events.push_back(ToJson(event));
  json["events"] = std::move(events);
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace signvote::ctl
