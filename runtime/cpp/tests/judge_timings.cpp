// judge_timings ROOT: what tools/timing.cpp and tools/disturbance.cpp make of the timings on
// standard input, {"ours", "theirs"} with "rounds", "disturbed" and "usages" each, and of the
// system whose /proc and /sys are in ROOT; as JSON.

#include <iostream>

#include "../tools/command.hpp"
#include "../tools/timing.hpp"

namespace {

using Json = nlohmann::ordered_json;
using cmt::tools::CpuUse;
using cmt::tools::Timing;

std::optional<double> number(const Json& usage, const char* name) {
  const auto found = usage.find(name);
  if (found == usage.end() || found->is_null()) return std::nullopt;
  return found->get<double>();
}

CpuUse usage_of(const Json& from) {
  return {from["wall"],
          from["cpu"],
          number(from, "waited"),
          number(from, "stolen"),
          number(from, "throttled"),
          number(from, "others"),
          number(from, "switches"),
          number(from, "mhz"),
          number(from, "load")};
}

Timing timing_of(const Json& from) {
  Timing timing;
  timing.rounds = from["rounds"].get<std::vector<std::vector<double>>>();
  timing.disturbed = from["disturbed"].get<std::vector<bool>>();
  for (const Json& usage : from["usages"]) timing.usages.push_back(usage_of(usage));
  return timing;
}

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const Json given = Json::parse(std::cin);
  const Timing ours = timing_of(given["ours"]);
  const Timing theirs = timing_of(given["theirs"]);
  Json noted = Json::array();
  for (const CpuUse& usage : ours.usages) noted.push_back(cmt::tools::disturbed(usage));
  const auto busy = ours.busy();
  const CpuUse here = cmt::tools::cpu_use(argv[1]);
  const Json found{{"speedup", cmt::tools::speedup(ours, theirs)},
                   {"busy", busy ? Json(*busy) : Json()},
                   {"p50", ours.latency().p50},
                   {"quality", ours.quality()},
                   {"enough", cmt::tools::enough({&theirs, &ours})},
                   {"disturbed", noted},
                   {"here",
                    {{"waited", or_null(here.waited)},
                     {"stolen", or_null(here.stolen)},
                     {"throttled", or_null(here.throttled)},
                     {"mhz", or_null(here.mhz)},
                     {"load", or_null(here.load)}}}};
  std::cout << cmt::tools::to_text(found, -1) << '\n';
  return 0;
}
