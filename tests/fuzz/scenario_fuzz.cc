// The reader of an experiment's file (lab/run/scenario.h) and of what --set says of it. What it lets through has a
// timeline that ends when it is asked to, and names that fit a folder.
//
// Input: a byte for the length of one setting, 0 for none; the setting; the file.

#include <set>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/exit_codes.h"
#include "lab/run/programs.h"
#include "lab/run/scenario.h"
#include "lab/run/timeline.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace signvote;
  fuzz::Input input(data, size);
  std::vector<std::string> settings;
  if (const size_t length = input.Byte(); length > 0) settings.push_back(input.Text(length));
  const auto scenarios = lab::ParseScenarios(input.Rest(), "a.toml", settings);
  if (!scenarios.ok()) {
    SIGNVOTE_CHECK(ExitCodeFor(scenarios.status()) == ExitCode::kUsage);
    SIGNVOTE_CHECK(!scenarios.status().message().empty());
    return 0;
  }
  SIGNVOTE_CHECK(!scenarios->empty() && scenarios->size() <= lab::kScenarioCellsMax);
  const lab::Scenario& scenario = scenarios->back();
  SIGNVOTE_CHECK(scenario.rounds.has_value() || scenario.seconds.has_value() ||
                 scenario.minibatches.has_value());
  SIGNVOTE_CHECK(lab::NameOf(scenario).find('/') == std::string::npos);
  const std::vector<std::string> workers = scenario.AllWorkers();
  SIGNVOTE_CHECK(!workers.empty() && workers.size() <= lab::kScenarioWorkersMax);
  const std::set<std::string> known(workers.begin(), workers.end());
  SIGNVOTE_CHECK(known.size() == workers.size());
  lab::Timeline timeline(scenario);
  for (uint64_t round = 0; round < 4; ++round) {
    for (const lab::TimelineAction& action :
         timeline.Due(round, static_cast<double>(round) * 0.5)) {
      SIGNVOTE_CHECK(action.kind == lab::ScenarioEventKind::kServerKill ||
                     known.contains(action.worker));
    }
  }
  return 0;
}
