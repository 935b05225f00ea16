#pragma once
// The report of an experiment as one HTML page, without anything from outside: docs/lab.md, "Elastic
// experiments".

#include <string>
#include <vector>

#include "lab/run/run_report.h"

namespace signvote::lab {

// `title`: the scenario's name. All runs are in each plot. REQUIRES: !reports.empty().
std::string RunPage(const std::string& title, const std::vector<RunReport>& reports);

}  // namespace signvote::lab
