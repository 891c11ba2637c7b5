package cli

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"berth/engine"
	"berth/internal/container"
)

func (p *program) check() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "check", Short: "Is the kernel what the store wants?", Args: cobra.NoArgs,
		Long: `Compare the kernel with what the store wants. Every difference is a line, and so
is every container that is dead or half made; with any, the exit status is 1.
Rules of other tools that drop what Berth allows are shown with the command that
cures it; they are no difference.`,
		Example: "  berth check && echo all is well",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				r, err := e.Check(cmd.Context())
				if err != nil {
					return err
				}
				dead, err := p.faulty(wires{e}, func(s *container.Service) ([]string, error) { return s.Check(cmd.Context()) })
				if err != nil {
					return err
				}
				r.Dead = append(r.Dead, dead...)
				if err := p.tell(r, format); err != nil {
					return err
				}
				if !r.Clean() {
					return &exit{status: exitFailed}
				}
				return nil
			})
		},
	}
	detailFlag(cmd, &format)
	return cmd
}

// faulty asks about containers.
func (p *program) faulty(w wires, ask func(*container.Service) ([]string, error)) ([]string, error) {
	s, err := p.service(w)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return ask(s)
}

// tell prints a report.
func (p *program) tell(r engine.Report, format string) error {
	if format != "" {
		return inspect(p.out, format, []engine.Report{r})
	}
	for _, part := range []struct {
		word  string
		lines []string
	}{{"missing", r.Missing}, {"extra", r.Extra}, {"changed", r.Changed}, {"dead", r.Dead}} {
		for _, l := range part.lines {
			fmt.Fprintf(p.out, "%-8s %s\n", part.word, l)
		}
	}
	for _, o := range r.Obstacles {
		p.obstacle(o)
	}
	for _, n := range r.Notes {
		p.note(n)
	}
	return nil
}

func (p *program) reconcile() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reconcile", Short: "Make the kernel what the store wants", Args: cobra.NoArgs,
		Long: `Make the kernel what the store wants: after a firewall was flushed, a crash, a
reboot. Sandboxes whose namespace is gone are forgotten, and containers that are
dead or half made are taken away. What was found is printed as "check" prints
it.`,
		Example: "  berth reconcile --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				r, err := e.Reconcile(cmd.Context())
				if p.dryRun {
					return err
				}
				// Its networks are whole by now.
				dead, cerr := p.faulty(wires{e}, func(s *container.Service) ([]string, error) { return s.Reconcile(cmd.Context()) })
				r.Dead = append(r.Dead, dead...)
				return errors.Join(err, cerr, p.tell(r, ""))
			})
		},
	}
	return p.changing(cmd)
}

// A build is what "version" tells.
type build struct{ Version, Revision, Time, Go string }

// String is in one line, as "docker --version" is.
func (b build) String() string {
	s := "berth " + b.Version
	if b.Revision != "" {
		s += ", revision " + b.Revision[:min(len(b.Revision), 12)] + " of " + b.Time
	}
	return s + ", " + b.Go
}

func thisBuild() build {
	b := build{Version: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version, b.Go = info.Main.Version, info.GoVersion
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		}
	}
	return b
}

func (p *program) version() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Which Berth this is", Args: cobra.NoArgs,
		Example: "  berth version --format '{{.Revision}}'",
		RunE: func(*cobra.Command, []string) error {
			b := thisBuild()
			if format != "" {
				return inspect(p.out, format, []build{b})
			}
			fmt.Fprintln(p.out, b)
			return nil
		},
	}
	detailFlag(cmd, &format)
	return cmd
}
