package cli

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"berth/engine"
)

func (p *program) check() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "check", Short: "Is the kernel what the store wants?", Args: cobra.NoArgs,
		Long: `Compare the kernel with what the store wants. Every difference is a line; with
any, the exit status is 1. Rules of other tools that drop what Berth allows are
shown with the command that cures it; they are no difference.`,
		Example: "  berth check && echo all is well",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				r, err := e.Check(cmd.Context())
				if err != nil {
					return err
				}
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
	cmd.Flags().StringVar(&format, "format", "", `"json" or a Go template`)
	return cmd
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
		fmt.Fprintln(p.err, "note: "+n)
	}
	return nil
}

func (p *program) reconcile() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reconcile", Short: "Make the kernel what the store wants", Args: cobra.NoArgs,
		Long: `Make the kernel what the store wants: after a firewall was flushed, a crash, a
reboot. Sandboxes whose namespace is gone are forgotten. What was found is
printed as "check" prints it.`,
		Example: "  berth reconcile --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				r, err := e.Reconcile(cmd.Context())
				if p.dryRun {
					return err
				}
				if terr := p.tell(r, ""); err == nil {
					err = terr
				}
				return err
			})
		},
	}
	return p.changing(cmd)
}

func (p *program) info() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info", Short: "What this host is, and what its kernel has", Args: cobra.NoArgs,
		Example: "  berth info --format json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				h, err := e.Info(cmd.Context())
				if err != nil {
					return err
				}
				if format != "" {
					return inspect(p.out, format, []engine.HostInfo{h})
				}
				fmt.Fprintf(p.out, "Kernel:     %s\nRoot:       %s\nRun:        %s\nNetworks:   %d\nSandboxes:  %d\nEndpoints:  %d\nPorts:      %d\nPools:\n", h.Kernel, h.Root, h.Run, h.Networks, h.Sandboxes, h.Endpoints, h.Ports)
				for _, x := range h.Pools {
					fmt.Fprintf(p.out, "  %s cut to /%d\n", x.Base, x.Size)
				}
				fmt.Fprintln(p.out, "Features:")
				for _, x := range h.Features {
					have := "yes"
					if !x.Have {
						have = "no: it costs " + x.Costs
					}
					fmt.Fprintf(p.out, "  %s: %s\n", x.Name, have)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

// A build is what "version" tells.
type build struct{ Version, Revision, Time, Go string }

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
			fmt.Fprintf(p.out, "berth %s\nrevision %s %s\n%s\n", b.Version, b.Revision, b.Time, b.Go)
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

// manual writes the manual pages; "make docs" calls it.
func (p *program) manual() *cobra.Command {
	return &cobra.Command{
		Use: "manual DIRECTORY", Short: "Write the manual pages", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "BERTH", Section: "8", Source: "Berth"}, args[0])
		},
	}
}
