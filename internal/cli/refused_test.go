package cli

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/docker-compat.md and the goldens")

// A dockerFlag is a flag of Docker's command line.
type dockerFlag struct {
	name, short string
	value       bool // a value follows it
}

// dockerFlags are those of testdata/docker-flags.txt, by command, and the
// commands in its order.
func dockerFlags(t *testing.T) (map[string][]dockerFlag, []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/docker-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	flags, order := map[string][]dockerFlag{}, []string{}
	for line := range strings.Lines(string(text)) {
		words := strings.Split(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if len(words) != 4 {
			t.Fatalf("line %q", line)
		}
		if !slices.Contains(order, words[0]) {
			order = append(order, words[0])
		}
		if words[1] != "-" {
			flags[words[0]] = append(flags[words[0]], dockerFlag{words[1], strings.Trim(words[2], "-"), words[3] == "value"})
		}
	}
	return flags, order
}

// ours is Berth's command of a name of Docker's, as far as its flags go.
func ours(t *testing.T, name string) *cobra.Command {
	t.Helper()
	cmd := &cobra.Command{Use: name, RunE: func(*cobra.Command, []string) error { return nil }, SilenceErrors: true, SilenceUsage: true}
	flagged := map[string]func(*cobra.Command){
		"run":    func(c *cobra.Command) { new(runFlags).flags(c); new(runOnlyFlags).flags(c) },
		"create": new(runFlags).flags, "attach": new(attachFlags).flags, "start": new(startFlags).flags, "exec": new(execFlags).flags,
		"update": new(updateFlags).flags, "logs": new(logsFlags).flags, "stop": new(stopFlags).flags, "restart": new(stopFlags).flags,
		"kill": new(killFlags).flags, "rm": new(removeFlags).flags, "stats": new(statsFlags).flags, "prune": new(pruneFlags).flags,
		"ps": new(psFlags).flags, "inspect": func(c *cobra.Command) { detailFlag(c, new(string)); refuse(c, "inspect") },
		"diff": func(*cobra.Command) {}, "pause": func(*cobra.Command) {}, "unpause": func(*cobra.Command) {}, "wait": func(*cobra.Command) {},
	}
	if flagged[name] == nil {
		c, _, err := Root().Find(strings.Fields(name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	flagged[name](cmd)
	return cmd
}

func verdictOf(command, flag string) verdict {
	for _, v := range verdicts[command] {
		if v.flag == flag {
			return v
		}
	}
	return verdict{}
}

func TestEveryFlagOfDockerIsTakenOrRefused(t *testing.T) {
	all, order := dockerFlags(t)
	for _, command := range order {
		cmd := ours(t, command)
		for _, d := range all[command] {
			f, v := cmd.Flags().Lookup(d.name), verdictOf(command, d.name)
			switch {
			case f == nil:
				t.Errorf("%s --%s is not known", command, d.name)
			case f.Shorthand != d.short:
				t.Errorf("%s --%s: short form %q, Docker's is %q", command, d.name, f.Shorthand, d.short)
			case v.refused != "" && (!f.Hidden || v.differs != ""):
				t.Errorf("%s --%s is refused, but in the help, or differs too", command, d.name)
			case v.refused == "" && f.Hidden:
				t.Errorf("%s --%s is not refused and not in the help", command, d.name)
			case v.refused == "" && (f.NoOptDefVal == "") != d.value:
				t.Errorf("%s --%s: whether a value follows is not as in Docker: %v", command, d.name, d.value)
			}
		}
		for _, v := range verdicts[command] {
			runOnly := command == "create" && verdictOf("run", v.flag) == v
			if !runOnly && !slices.ContainsFunc(all[command], func(d dockerFlag) bool { return d.name == v.flag }) {
				t.Errorf("a verdict about %s --%s, which Docker has not", command, v.flag)
			}
		}
	}
}

func TestRefusedFlagsSayWhy(t *testing.T) {
	all, order := dockerFlags(t)
	for _, command := range order {
		for _, d := range all[command] {
			v := verdictOf(command, d.name)
			if v.refused == "" {
				continue
			}
			want := "--" + d.name + " is refused: " + v.refused
			forms := [][]string{{"--" + d.name + "=x"}, {"--" + d.name, "x"}, {"--" + d.name}}
			if d.short != "" {
				forms = append(forms, []string{"-" + d.short, "x"})
			}
			for _, form := range forms {
				err := ours(t, command).ParseFlags(form)
				if err == nil || flagError(err).Error() != want {
					t.Errorf("%s %q: got %v, want %s", command, form, err, want)
				}
			}
		}
	}
}

func TestCreateHasTheFlagsOfRun(t *testing.T) {
	all, _ := dockerFlags(t)
	want := slices.DeleteFunc(slices.Clone(all["run"]), func(d dockerFlag) bool { return ours(t, "create").Flags().Lookup(d.name) == nil })
	if !slices.Equal(want, all["create"]) {
		t.Errorf("got %v, want %v", want, all["create"])
	}
}

const compatHead = `# Docker's flags

Every flag of Docker's commands is the same here, differs as said, or is refused with the reason: none is taken and
ignored. Made by a test (` + "`go test ./internal/cli -update`" + `) from the table that refuses them and from the list of
Docker's flags in internal/cli/testdata (%s).

Under *here only* are the flags that Docker has not.
`

// TestCompatIsCurrent makes the document from the verdicts and the flags of
// the commands, and compares.
func TestCompatIsCurrent(t *testing.T) {
	const file = "../../docs/docker-compat.md"
	all, order := dockerFlags(t)
	text, err := os.ReadFile("testdata/docker-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(text), "From the help of: ")
	version, _, _ = strings.Cut(version, "\n")
	var b strings.Builder
	fmt.Fprintf(&b, compatHead, version)
	for _, command := range order {
		fmt.Fprintf(&b, "\n## %s\n\n", command)
		if command == "create" {
			b.WriteString("As run, without `--detach`, `--detach-keys` and `--sig-proxy`.\n")
			continue
		}
		compatTable(&b, command, all[command], ours(t, command))
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(file); err != nil || string(have) != b.String() {
		t.Errorf("docs/docker-compat.md is not current (go test ./internal/cli -update): %v", err)
	}
}

func compatTable(w io.Writer, command string, flags []dockerFlag, cmd *cobra.Command) {
	if len(flags) > 0 {
		fmt.Fprint(w, "| flag | |\n|---|---|\n")
	} else {
		fmt.Fprint(w, "Docker has no flags of it.\n")
	}
	known := []string{"help"}
	for _, d := range flags {
		known = append(known, d.name)
		name, v := "`--"+d.name+"`", verdictOf(command, d.name)
		if d.short != "" {
			name = "`-" + d.short + "` " + name
		}
		verdict := "same"
		switch {
		case v.refused != "":
			verdict = "**refused**: " + v.refused
		case v.differs != "":
			verdict = "differs: " + v.differs
		}
		fmt.Fprintf(w, "| %s | %s |\n", name, strings.ReplaceAll(verdict, "|", `\|`))
	}
	var own []string
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && !slices.Contains(known, f.Name) && cmd.InheritedFlags().Lookup(f.Name) == nil {
			own = append(own, "`--"+f.Name+"`")
		}
	})
	if len(own) > 0 {
		fmt.Fprintf(w, "\nHere only: %s.\n", strings.Join(own, ", "))
	}
}
