// cmt_bench BUNDLE: latency of a bundle's files, measured as Python's cmt-bench does.

#include <algorithm>
#include <chrono>
#include <cmt/error.hpp>
#include <cstdio>
#include <iostream>

#include "../src/files.hpp"
#include "../src/golden.hpp"
#include "accuracy.hpp"
#include "command.hpp"
#include "machine.hpp"
#include "timing.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr const char* kUsage =
    "usage: cmt_bench BUNDLE [--artefact NAME] [--seconds S] [--threads N] [--machine NAME] "
    "[--device NAME] [--val-data FOLDER] [--val-count N] [--json] [--trust KEY | "
    "--trust-unsigned]\n"
    "\n"
    "Times the files that this build can run, in alternating bursts. Exit status 1: the device\n"
    "that is named does not answer the golden images as the exporting machine did.\n"
    "  --artefact NAME  only this one, such as openvino/int8\n"
    "  --seconds S      spent on each file; default: 5\n"
    "  --threads N      CPU threads; default: as tuned, or all\n"
    "  --device NAME    such as GPU, NPU, AUTO, CUDA; default: the CPU\n"
    "  --val-data FOLDER  images, class/name.jpg or MNIST's IDX files, on which accuracy is\n"
    "                   measured as well; a run that was killed goes on where it was\n"
    "  --val-count N    so many of them, those that torch answered first; default: all\n"
    "  --machine NAME   name of this machine; default: its host name\n"
    "  --json           print what report.json's `machines` holds of a machine\n";

// As in measure/latency.py and measure/worker.py.
constexpr double kWarmUpSeconds = 0.5;
constexpr int kUncounted = 2;
constexpr std::size_t kFewest = 3;

// OpenVINO's name for the number of threads, among an artefact's settings where it was tuned.
constexpr const char* kThreads = "INFERENCE_NUM_THREADS";

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

/// A file, loaded and run once.
struct Candidate {
  const cmt::Artefact* artefact;
  std::shared_ptr<const cmt::Model> model;
  std::unique_ptr<cmt::Session> session;
  cmt::tools::Timing timing;

  /// Latencies in ms of back-to-back runs for this long.
  std::vector<double> burst(double seconds) const {
    std::vector<double> times;
    for (int i = 0; i < kUncounted; ++i) session->infer();
    const auto begin = Clock::now();
    for (std::size_t runs = 0; runs < kFewest || milliseconds_since(begin) < seconds * 1000;
         ++runs) {
      const auto start = Clock::now();
      session->infer();
      times.push_back(milliseconds_since(start));
    }
    return times;
  }
};

// As many threads as were asked for, else as the file was tuned to, else all.
int threads_of(const cmt::Artefact& artefact, int asked) {
  if (asked > 0) return asked;
  const auto tuned = artefact.settings.find(kThreads);
  if (tuned != artefact.settings.end()) return std::stoi(tuned->second);
  return cmt::tools::usable_cores();
}

Candidate load(const cmt::Bundle& bundle, const cmt::Artefact& artefact, int threads,
               const std::string& device) {
  const auto begin = Clock::now();
  Candidate candidate{&artefact, cmt::load_model(bundle, artefact, threads, device), {}, {}};
  candidate.session = candidate.model->make_session();
  candidate.timing.load = milliseconds_since(begin);
  const cmt::Manifest& manifest = bundle.manifest();
  const auto images =
      cmt::parse_npy_bytes(bundle.read(manifest.golden_images), manifest.golden_images.path);
  const cmt::Preprocessing& p = manifest.preprocessing;
  const std::size_t count = images.values.size() / p.area();
  if (count == 0) throw cmt::InputError(manifest.golden_images.path + " holds no image");
  const cmt::Preprocessor preprocessor(p);
  for (std::size_t i = 0; i < manifest.batch; ++i) {
    preprocessor.feed(images.values.data() + i % count * p.area(), candidate.session->input(), i);
  }
  const auto start = Clock::now();
  candidate.session->infer();
  candidate.timing.first = milliseconds_since(start);
  return candidate;
}

void measure(std::vector<Candidate>& candidates, double seconds) {
  std::vector<Candidate*> order;
  std::vector<const cmt::tools::Timing*> timings;
  for (Candidate& candidate : candidates) {
    candidate.burst(kWarmUpSeconds);
    order.push_back(&candidate);
    timings.push_back(&candidate.timing);
  }
  while (!cmt::tools::enough(timings)) {
    bool disturbed = false;
    for (Candidate* candidate : order) {
      cmt::tools::Timing& timing = candidate->timing;
      const cmt::tools::CpuUse before = cmt::tools::cpu_use();
      timing.rounds.push_back(candidate->burst(seconds / cmt::tools::kRounds));
      timing.usages.push_back(cmt::tools::between(before, cmt::tools::cpu_use()));
      disturbed = disturbed || cmt::tools::disturbed(timing.usages.back());
    }
    for (Candidate& candidate : candidates) candidate.timing.disturbed.push_back(disturbed);
    // So that nobody always follows the same neighbour.
    std::reverse(order.begin(), order.end());
  }
}

/// How a file is run.
struct Run {
  std::size_t batch;
  int threads;
  std::string device;
};

Json row(const Candidate& candidate, const std::vector<Candidate>& all, const Run& run) {
  const cmt::Artefact& artefact = *candidate.artefact;
  const cmt::tools::Latency latency = candidate.timing.latency();
  Json settings{{"threads", run.threads}, {"batch", run.batch}};
  for (const auto& [name, value] : artefact.settings) {
    if (name != kThreads) settings[name] = value;
  }
  if (!run.device.empty()) settings["device"] = run.device;
  Json reasons{{"accuracy", "--val-data measures it; see the exporting machine's row"},
               {"speedup_vs_baseline", "there is no torch in this measurement"},
               {"peak_rss_mb", "all files were measured in one process"}};
  Json against_fp32;
  for (const Candidate& other : all) {
    if (other.artefact->target == artefact.target && other.artefact->precision == "fp32") {
      against_fp32 = cmt::tools::speedup(candidate.timing, other.timing);
    }
  }
  if (against_fp32.is_null()) {
    reasons["speedup_vs_fp32_graph"] =
        candidate.timing.busy().value_or("the FP32 file was not measured beside it");
  }
  return {{"target", artefact.target},
          {"precision", artefact.precision},
          {"artefact", artefact.file.path},
          {"bytes", artefact.total_bytes},
          {"measured_by", artefact.target},
          {"accuracy", nullptr},
          {"latency_ms",
           {{"p50", latency.p50},
            {"p90", latency.p90},
            {"p99", latency.p99},
            {"mean", latency.mean},
            {"std", latency.std},
            {"iterations", latency.iterations},
            {"first", candidate.timing.first},
            {"load", candidate.timing.load}}},
          {"timing", candidate.timing.quality()},
          {"throughput_ips", static_cast<double>(run.batch) * 1000 / latency.mean},
          {"speedup_vs_baseline", nullptr},
          {"speedup_vs_fp32_graph", against_fp32},
          {"peak_rss_mb", nullptr},
          {"settings", settings},
          {"reasons", reasons}};
}

/// Refused before anything is measured: the report takes no other name.
std::string machine_name(const cmt::tools::Arguments& arguments) {
  std::string given = arguments.text("machine", cmt::printable(cmt::tools::host_name()));
  if (given.empty() || cmt::printable(given) != given) {
    throw cmt::InputError("--machine '" + given + "' is no name: give visible characters in UTF-8");
  }
  return given;
}

/// What files answer on the device that is named, if any; says which answer otherwise.
bool answer_as_they_should(const cmt::Bundle& bundle, const std::vector<Candidate>& candidates,
                           const std::string& device) {
  bool all = true;
  for (const Candidate& candidate : candidates) {
    if (device.empty()) break;
    const cmt::Check check =
        cmt::check_golden(bundle, *candidate.artefact, device, [&] { return candidate.model; });
    if (check.passed != false) continue;
    std::cerr << "cmt_bench: device " << cmt::printable(device)
              << " does not compute what the bundle's files do: "
              << cmt::printable(candidate.artefact->file.path) << ' ' << check.detail
              << "; take another --device\n";
    all = false;
  }
  return all;
}

/// Accuracy by path; `images` of the machine's entry under an empty one.
using Judged = std::map<std::string, Json>;

std::optional<Judged> judge(const cmt::Bundle& bundle, const std::vector<Candidate>& candidates,
                            const cmt::tools::Arguments& arguments, int threads) {
  const int count = arguments.count("val-count", 0, 1, 1'000'000'000);
  if (!arguments.has("val-data")) {
    if (count != 0) throw cmt::InputError("--val-count chooses of --val-data: add that");
    return std::nullopt;
  }
  std::vector<cmt::tools::Asked> asked;
  for (const Candidate& one : candidates) asked.push_back({one.artefact, one.model});
  const std::filesystem::path manifest =
      std::filesystem::path(arguments.positional.front()) / "manifest.json";
  const std::string run = cmt::sha256(cmt::read_file(manifest)) + ' ' + std::to_string(threads) +
                          ' ' + cmt::tools::device(arguments) + ' ' +
                          cmt::tools::describe_machine()["packages"].dump();
  const auto answered = cmt::tools::measure_accuracy(
      bundle, {arguments.text("val-data", ""), static_cast<std::size_t>(count), threads, run},
      asked);
  for (const std::string& remark : answered.remarks) {
    std::cerr << "warning: " << cmt::printable(remark) << '\n';
  }
  Judged judged{{"", answered.images}};
  for (std::size_t i = 0; i < asked.size(); ++i) {
    judged[asked[i].artefact->file.path] = answered.rows[i];
  }
  return judged;
}

void add_accuracy(const Judged& judged, const cmt::Artefact& artefact, Json* row) {
  Json found = judged.at(artefact.file.path);
  Json reasons = row->at("reasons");
  reasons.erase("accuracy");
  reasons.update(found["reasons"]);
  row->update(found);
  (*row)["reasons"] = reasons;
}

void print_accuracy(const Json& row) {
  const Json& accuracy = row["accuracy"];
  const std::string name =
      cmt::printable(row["target"].get<std::string>() + " " + row["precision"].get<std::string>());
  if (!accuracy.is_null()) {
    std::printf("%s: top-1 %.2f %% of %zu images", name.c_str(), accuracy["top1"].get<double>(),
                accuracy["images"].get<std::size_t>());
    if (!accuracy["drop_pp"].is_null()) {
      std::printf(", drop %+.2f [%+.2f, %+.2f] points", accuracy["drop_pp"].get<double>(),
                  accuracy["drop_ci95"][0].get<double>(), accuracy["drop_ci95"][1].get<double>());
    }
    std::printf("\n");
  }
  if (row.contains("beside_torch")) {
    std::printf("%s: %.2f %% of %zu images have torch's first answer\n", name.c_str(),
                100 * row["beside_torch"]["agreement"].get<double>(),
                row["beside_torch"]["images"].get<std::size_t>());
  }
  if (row.contains("unknown_images") && !row["unknown_images"]["agreement"].is_null()) {
    std::printf(
        "%s: of %zu images that torch did not answer, %.2f %% have the FP32 file's answer\n",
        name.c_str(), row["unknown_images"]["images"].get<std::size_t>(),
        100 * row["unknown_images"]["agreement"].get<double>());
  }
}

int bench(const cmt::tools::Arguments& arguments) {
  const std::string machine = machine_name(arguments);
  const double seconds = arguments.number("seconds", 5, 1e-3, 3600);
  const int threads = cmt::tools::threads(arguments);
  const std::string wanted = arguments.text("artefact", "");
  const std::string device = cmt::tools::device(arguments);
  const cmt::Bundle bundle(arguments.positional.front(), cmt::tools::trust(arguments));
  cmt::require_device(bundle, device);
  std::vector<Candidate> candidates;
  for (const cmt::Artefact& artefact : bundle.manifest().artefacts) {
    if (!wanted.empty() && wanted != artefact.name() && wanted != artefact.precision) continue;
    if (const auto reason = cmt::not_runnable(bundle, artefact, device)) {
      std::cerr << "skipped " << cmt::printable(artefact.file.path) << ": "
                << cmt::printable(*reason) << '\n';
      continue;
    }
    candidates.push_back(load(bundle, artefact, threads_of(artefact, threads), device));
  }
  if (candidates.empty()) throw cmt::InputError("this build can run none of the bundle's files");
  if (!answer_as_they_should(bundle, candidates, device)) return 1;
  const auto judged = judge(bundle, candidates, arguments, threads);
  measure(candidates, seconds);
  Json rows = Json::array();
  for (const Candidate& candidate : candidates) {
    const Run run{bundle.manifest().batch, threads_of(*candidate.artefact, threads), device};
    rows.push_back(row(candidate, candidates, run));
    if (judged) add_accuracy(*judged, *candidate.artefact, &rows.back());
  }
  // Before anything goes to standard output, whose loss is told by what is said last.
  if (const auto busy = candidates.front().timing.busy()) std::cerr << *busy << '\n';
  if (arguments.has("json")) {
    std::string command = "cmt_bench";
    for (const std::string& word : arguments.positional) {
      command.append(" ").append(cmt::printable(word));
    }
    for (const auto& [name, value] : arguments.options) {
      command.append(" --").append(name).append(value.empty() ? "" : " ");
      command.append(cmt::printable(value));
    }
    Json entry{{"machine", machine},
               {"measured", cmt::tools::timestamp()},
               {"command", command},
               {"environment", cmt::tools::describe_machine()}};
    if (judged) entry["images"] = judged->at("");
    entry["results"] = rows;
    std::cout << cmt::tools::to_text(entry, 1) << '\n';
    return 0;
  }
  std::printf("%-24s %8s %8s %8s %9s %18s\n", "file", "p50 ms", "p90 ms", "p99 ms", "images/s",
              "vs fp32 [95 %]");
  for (const Json& r : rows) {
    const Json& latency = r["latency_ms"];
    const std::string name =
        cmt::printable(r["target"].get<std::string>() + " " + r["precision"].get<std::string>());
    const Json& ratio = r["speedup_vs_fp32_graph"];
    std::printf("%-24s %8.3f %8.3f %8.3f %9.1f", name.c_str(), latency["p50"].get<double>(),
                latency["p90"].get<double>(), latency["p99"].get<double>(),
                r["throughput_ips"].get<double>());
    if (ratio.is_null()) {
      std::printf(" %18s\n", "n/a");
    } else {
      std::printf(" %5.2fx [%.2f, %.2f]\n", ratio["ratio"].get<double>(),
                  ratio["ci95"][0].get<double>(), ratio["ci95"][1].get<double>());
    }
  }
  for (const Json& r : rows) print_accuracy(r);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cmt::tools::run(
      argc, argv,
      {kUsage,
       {"artefact", "seconds", "threads", "machine", "device", "val-data", "val-count"},
       {"json"},
       1},
      bench);
}
