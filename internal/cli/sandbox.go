package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
		Use: "create SANDBOX…", Short: "Make sandboxes", Args: cobra.MinimumNArgs(1),
		Long: `Make network namespaces. They are pinned in /run/netns, so that ip-netns(8)
knows them too. The answer is the names.`,
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
	cmd.Flags().StringArrayVar(&labels, "label", nil, "a label, as `KEY=VALUE`")
	completeFlag(cmd, "label", cobra.NoFileCompletions)
	return p.changing(cmd)
}

func (p *program) sandboxRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm SANDBOX…", Aliases: []string{"remove"}, Short: "Remove sandboxes, or disconnect those that Berth did not make", Args: cobra.MinimumNArgs(1),
		Long: `Disconnect sandboxes from everything, and remove those that Berth made: the name
goes, the namespace ends with the last process in it. One that Berth did not
make is only disconnected.`,
		Example:           "  berth sandbox rm web",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				return each(args, func(name string) error {
					err := e.RemoveSandbox(cmd.Context(), name)
					if err == nil {
						p.say(name)
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolP("force", "f", false, "as Docker's: it makes no difference")
	return p.changing(cmd)
}

// A sandboxRow is a sandbox in a list.
type sandboxRow struct {
	ID, Name, State, Networks, Addresses, Ports, Path, Labels, CreatedAt string
	labelled                                                             `json:"-"`
}

var sandboxLayout = layout{
	headings: header{
		"ID": "SANDBOX ID", "Name": "NAME", "Networks": "NETWORKS", "Addresses": "ADDRESSES", "Ports": "PORTS", "State": "STATE",
		"Path": "PATH", "Labels": "LABELS", "CreatedAt": "CREATED AT",
	},
	shown: []string{"Name", "Networks", "Addresses", "Ports", "State", "Path"}, quiet: "Name",
}

var sandboxFilters = filters[engine.SandboxDetail]{
	"id":     func(s engine.SandboxDetail, v string) bool { return strings.HasPrefix(s.ID, v) },
	"name":   func(s engine.SandboxDetail, v string) bool { return strings.Contains(s.Name, v) },
	"label":  func(s engine.SandboxDetail, v string) bool { return hasLabel(s.Labels, v) },
	"status": func(s engine.SandboxDetail, v string) bool { return state(s) == v },
	"network": func(s engine.SandboxDetail, v string) bool {
		return slices.ContainsFunc(s.Endpoints, func(e engine.EndpointDetail) bool {
			return e.NetworkName == v || v != "" && strings.HasPrefix(e.Network, v)
		})
	},
}

func (p *program) sandboxList() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List sandboxes", Args: cobra.NoArgs,
		Long: `List the sandboxes that Berth made or has connected. A dead one is forgotten by
"berth reconcile", and before its address or port is refused to another.`,
		Example: "  berth sandbox ls --filter network=front\n  berth sandbox ls --format '{{.Name}} {{.Addresses}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := sandboxFilters.compile(l.filters)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Sandboxes(cmd.Context())
				if err != nil {
					return err
				}
				slices.SortFunc(all, func(a, b engine.SandboxDetail) int { return strings.Compare(a.Name, b.Name) })
				var rows []sandboxRow
				for _, s := range all {
					if match(s) {
						rows = append(rows, sandboxAsRow(s, l.noTrunc))
					}
				}
				return show(l, p.out, sandboxLayout, rows)
			})
		},
	}
	l.flags(cmd, "names", sandboxFilters.keys())
	return cmd
}

func sandboxAsRow(s engine.SandboxDetail, whole bool) sandboxRow {
	r := sandboxRow{ID: short(s.ID, whole), Name: s.Name, State: state(s), Path: s.Path, Labels: labelsText(s.Labels), CreatedAt: s.Created.Format(created), labelled: s.Labels}
	var nets, addrs, ports []string
	for _, e := range s.Endpoints {
		nets = append(nets, e.NetworkName)
		for _, a := range e.Addrs {
			addrs = append(addrs, a.Addr().String())
		}
		for _, x := range e.Ports {
			ports = append(ports, fmt.Sprintf("%s->%d/%s", netip.AddrPortFrom(x.HostIP, x.HostPort), x.To.Port(), x.Protocol))
		}
	}
	const most = 4
	if len(ports) > most && !whole {
		ports = append(ports[:most], fmt.Sprintf("… %d more", len(ports)-most))
	}
	r.Networks, r.Addresses, r.Ports = strings.Join(nets, ","), strings.Join(addrs, ","), strings.Join(ports, ", ")
	return r
}

func (p *program) sandboxInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect SANDBOX…", Short: "Show sandboxes in detail", Args: cobra.MinimumNArgs(1),
		Long: `Show sandboxes in detail, in the shape of "docker inspect" as far as both have
the same things. A second endpoint on one network is there as NETWORK/INTERFACE.`,
		Example:           "  berth sandbox inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web",
		ValidArgsFunction: p.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				networks, err := networksByID(cmd.Context(), e)
				if err != nil {
					return err
				}
				out := []sandboxJSON{}
				err = each(args, func(name string) error {
					d, err := e.InspectSandbox(cmd.Context(), name)
					if err == nil {
						out = append(out, sandboxAsJSON(d, networks))
					}
					return err
				})
				return errors.Join(err, inspect(p.out, format, out))
			})
		},
	}
	detailFlag(cmd, &format)
	return cmd
}

// networksByID are all networks.
func networksByID(ctx context.Context, e *engine.Engine) (map[string]berth.Network, error) {
	all, err := e.Networks(ctx)
	out := make(map[string]berth.Network, len(all))
	for _, n := range all {
		out[n.ID] = n.Network
	}
	return out, err
}
