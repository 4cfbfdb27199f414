// megafold: trains AlphaFold 3. One file per subcommand beside this one.
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "apps/megafold/commands.h"
#include "megafold/core/error.h"

namespace {

using megafold::ErrorCode;

int StatusOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kDataCorrupt:
    case ErrorCode::kNotFound:
      return megafold::apps::kBadInput;
    case ErrorCode::kDevice:
    case ErrorCode::kInternal:
      return megafold::apps::kFailure;
  }
  return megafold::apps::kFailure;
}

int Complain(const std::string& what, int status) {
  // PyTorch's errors carry a stack trace below their first line.
  std::fprintf(stderr, "megafold: %s\n", what.substr(0, what.find('\n')).c_str());
  return status;
}

// CLI11 says of a misspelt command only that one is required.
void RequireKnownCommand(const CLI::App& app, int argc, char** argv) {
  const std::string word = argc > 1 ? argv[1] : "";
  if (word.starts_with("-")) return;
  std::string known;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == word) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  const std::string what = word.empty() ? "no command given" : "unknown command '" + word + "'";
  megafold::Fail(ErrorCode::kInvalidArgument, what, ", expected one of: ", known,
                 "; megafold --help says what they do");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Trains AlphaFold 3 on PDB entries.\n\nmegafold COMMAND --help tells more."};
  app.name("megafold");
  app.require_subcommand(1);
  int status = 0;
  megafold::apps::AddTrain(app, &status);
  megafold::apps::AddTune(app, &status);
  megafold::apps::AddInspect(app, &status);
  megafold::apps::AddDoctor(app, &status);
  megafold::apps::AddVersion(app, &status);
  try {
    RequireKnownCommand(app, argc, argv);
    app.parse(argc, argv);
    return status;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return Complain(error.what(), megafold::apps::kBadInput);
  } catch (const megafold::Error& error) {
    return Complain(error.what(), StatusOf(error.code()));
  } catch (const std::bad_alloc&) {
    return Complain("out of memory", megafold::apps::kFailure);
  } catch (const std::exception& error) {
    return Complain(error.what(), megafold::apps::kFailure);
  }
}
