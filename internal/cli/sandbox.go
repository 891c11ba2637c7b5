package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

func (p *program) sandbox() *cobra.Command {
	cmd := &cobra.Command{
		Use: "sandbox", Short: "Sandboxes: network namespaces that are connected",
		Example: "  berth sandbox create web\n  berth sandbox exec web ip addr",
	}
	cmd.AddCommand(p.sandboxCreate(), p.sandboxRemove(), p.sandboxList(), p.sandboxInspect(), p.exec())
	return cmd
}

func (p *program) sandboxCreate() *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use: "create SANDBOX…", Short: "Make network namespaces, pinned in /run/netns", Args: cobra.MinimumNArgs(1),
		Example: "  berth sandbox create web api",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := keyValues("label", labels)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				for _, name := range args {
					if _, err := e.CreateSandbox(cmd.Context(), engine.SandboxSpec{Name: name, Labels: l}); err != nil {
						return err
					}
					p.say(name)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "KEY=VALUE")
	return p.changing(cmd)
}

func (p *program) sandboxRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm SANDBOX…", Aliases: []string{"remove"}, Short: "Disconnect sandboxes from everything; remove those that Berth made", Args: cobra.MinimumNArgs(1),
		Example:           "  berth sandbox rm web",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				var errs []error
				for _, name := range args {
					if err := e.RemoveSandbox(cmd.Context(), name); err != nil {
						errs = append(errs, err)
						continue
					}
					p.say(name)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolP("force", "f", false, "as Docker's; it makes no difference")
	return p.changing(cmd)
}

// A sandboxRow is a sandbox in a list.
type sandboxRow struct {
	ID, Name, State, Networks, Addresses, Ports, Path, Labels, CreatedAt string
}

func (p *program) sandboxList() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List sandboxes", Args: cobra.NoArgs,
		Example: "  berth sandbox ls --format '{{.Name}} {{.Addresses}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Sandboxes(cmd.Context())
				if err != nil {
					return err
				}
				var rows []sandboxRow
				for _, s := range all {
					r := sandboxAsRow(s, l.noTrunc)
					ok, err := matchAll(l.filters, map[string]func(string) bool{
						"id": func(v string) bool { return strings.HasPrefix(s.ID, v) }, "name": func(v string) bool { return strings.Contains(s.Name, v) },
						"label": func(v string) bool { return hasLabel(s.Labels, v) }, "status": func(v string) bool { return r.State == v },
						"network": func(v string) bool { return onNetwork(s, v) },
					})
					if err != nil {
						return err
					}
					if ok {
						rows = append(rows, r)
					}
				}
				return show(l, p.out, []column{{"NAME", "Name"}, {"STATE", "State"}, {"NETWORKS", "Networks"}, {"ADDRESSES", "Addresses"}, {"PORTS", "Ports"}, {"PATH", "Path"}}, rows)
			})
		},
	}
	l.flags(cmd)
	return cmd
}

func onNetwork(s engine.SandboxDetail, name string) bool {
	for _, e := range s.Endpoints {
		if e.NetworkName == name || strings.HasPrefix(e.Network, name) {
			return true
		}
	}
	return false
}

func sandboxAsRow(s engine.SandboxDetail, whole bool) sandboxRow {
	r := sandboxRow{ID: short(s.ID, whole), Name: s.Name, State: state(s), Path: s.Path, Labels: labelsText(s.Labels), CreatedAt: s.Created.Format("2006-01-02 15:04:05 -0700 MST")}
	var nets, addrs, ports []string
	for _, e := range s.Endpoints {
		nets = append(nets, e.NetworkName)
		for _, a := range e.Addrs {
			addrs = append(addrs, a.Addr().String())
		}
		for _, x := range e.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d->%d/%s", bracket(x), x.HostPort, x.To.Port(), x.Protocol))
		}
	}
	const most = 4
	if len(ports) > most && !whole {
		ports = append(ports[:most], fmt.Sprintf("… %d more", len(ports)-most))
	}
	r.Networks, r.Addresses, r.Ports = strings.Join(nets, ","), strings.Join(addrs, ","), strings.Join(ports, ", ")
	return r
}

func bracket(x berth.Port) string {
	if x.HostIP.Is6() {
		return "[" + x.HostIP.String() + "]"
	}
	return x.HostIP.String()
}

func (p *program) sandboxInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect SANDBOX…", Short: "Show sandboxes in detail", Args: cobra.MinimumNArgs(1),
		Example:           "  berth sandbox inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Networks(cmd.Context())
				if err != nil {
					return err
				}
				networks := map[string]berth.Network{}
				for _, n := range all {
					networks[n.ID] = n.Network
				}
				out, errs := []sandboxJSON{}, []error{}
				for _, name := range args {
					d, err := e.InspectSandbox(cmd.Context(), name)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					out = append(out, sandboxAsJSON(d, networks))
				}
				return errors.Join(append(errs, inspect(p.out, format, out))...)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

func (p *program) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec SANDBOX COMMAND [ARGUMENT…]", Short: "Run a command inside a sandbox",
		Long: `Run a command inside a sandbox's network namespace, with /sys and the files of
/etc/netns/SANDBOX as ip-netns(8) shows them. Terminal, signals and exit status
are the command's own. 125: Berth failed; 126: not executable; 127: not found.`,
		Args:              cobra.MinimumNArgs(2),
		Example:           "  berth sandbox exec web ip addr\n  berth sandbox exec pid:4711 sh",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			var ns *os.File
			var name string
			// The engine is closed before the command takes the process over.
			err := p.with(cmd.Context(), func(e *engine.Engine) error {
				d, err := e.InspectSandbox(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				name = d.Name
				ns, err = e.Enter(cmd.Context(), args[0])
				return err
			})
			if err != nil {
				return &exit{125, err}
			}
			return execIn(ns, name, args[1:])
		},
	}
	cmd.Flags().BoolP("interactive", "i", false, "as Docker's; the terminal is the command's anyway")
	cmd.Flags().BoolP("tty", "t", false, "as Docker's; the terminal is the command's anyway")
	cmd.Flags().SetInterspersed(false)
	return cmd
}
