package cli

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

func (p *program) network() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Short: "Networks, and who is connected to them",
		Example: "  berth network create --subnet 10.9.0.0/24 front\n  berth network connect front web",
	}
	cmd.AddCommand(p.networkCreate(), p.networkRemove(), p.networkList(), p.networkInspect(), p.connect(), p.disconnect(), p.networkUpdate(), p.networkPrune())
	return cmd
}

func (p *program) networkRemove() *cobra.Command {
	var o engine.RemoveOptions
	cmd := &cobra.Command{
		Use: "rm NETWORK…", Aliases: []string{"remove"}, Short: "Remove networks", Args: cobra.MinimumNArgs(1),
		Long: `Remove networks. One to which living sandboxes are connected stays, and the
error names them. A bridge that Berth did not make is left as it was found.`,
		Example:           "  berth network rm front back\n  berth network rm --force front",
		ValidArgsFunction: p.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				return each(args, func(name string) error {
					err := e.RemoveNetwork(cmd.Context(), name, o)
					if err == nil {
						p.say(name)
					}
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "disconnect the sandboxes that are connected")
	return p.changing(cmd)
}

func (p *program) networkPrune() *cobra.Command {
	var words []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all networks without endpoints", Args: cobra.NoArgs,
		Example: "  berth network prune --filter label=ci",
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := networkFilters.compile(words)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Networks(cmd.Context())
				if err != nil {
					return err
				}
				var errs []error
				for _, n := range all {
					if len(n.Endpoints) > 0 || !match(n) {
						continue
					}
					// One that was connected since is in use, and stays.
					if err := e.RemoveNetwork(cmd.Context(), n.ID, engine.RemoveOptions{}); err == nil {
						p.say(n.Name)
					} else if !errors.Is(err, berth.ErrInUse) {
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolP("force", "f", false, "as Docker's: there is no question to be answered")
	cmd.Flags().StringArrayVar(&words, "filter", nil, "only what matches `KEY=VALUE`, with a key of: "+networkFilters.keys())
	return p.changing(cmd)
}

// A networkRow is a network as Docker lists it.
type networkRow struct {
	ID, Name, Driver, Scope, IPv4, IPv6, Internal, Labels, CreatedAt string
	labelled                                                         `json:"-"`
}

var networkLayout = layout{
	headings: header{
		"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
		"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
	},
	shown: []string{"ID", "Name", "Driver", "Scope"}, quiet: "ID",
}

var networkFilters = filters[engine.NetworkDetail]{
	"driver":   func(n engine.NetworkDetail, v string) bool { return string(n.Driver) == v },
	"id":       func(n engine.NetworkDetail, v string) bool { return strings.HasPrefix(n.ID, v) },
	"name":     func(n engine.NetworkDetail, v string) bool { return strings.Contains(n.Name, v) },
	"label":    func(n engine.NetworkDetail, v string) bool { return hasLabel(n.Labels, v) },
	"scope":    func(_ engine.NetworkDetail, v string) bool { return v == "local" },
	"type":     func(_ engine.NetworkDetail, v string) bool { return v == "custom" },
	"internal": func(n engine.NetworkDetail, v string) bool { return says(v, n.Internal) },
	"dangling": func(n engine.NetworkDetail, v string) bool { return says(v, len(n.Endpoints) == 0) },
}

func networkAsRow(n engine.NetworkDetail, whole bool) networkRow {
	return networkRow{
		short(n.ID, whole), n.Name, string(n.Driver), "local", strconv.FormatBool(n.Has4()), strconv.FormatBool(n.Has6()),
		strconv.FormatBool(n.Internal), labelsText(n.Labels), n.Created.Format(created), n.Labels,
	}
}

// created is how Docker's lists write a time.
const created = "2006-01-02 15:04:05.999999999 -0700 MST"

func short(id string, whole bool) string {
	if whole || len(id) < 12 {
		return id
	}
	return id[:12]
}

func (p *program) networkList() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs,
		Example: "  berth network ls --filter driver=link\n  berth network ls --format '{{.Name}}: {{.IPv6}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := networkFilters.compile(l.filters)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Networks(cmd.Context())
				if err != nil {
					return err
				}
				var rows []networkRow
				for _, n := range all {
					if match(n) {
						rows = append(rows, networkAsRow(n, l.noTrunc))
					}
				}
				return show(l, p.out, networkLayout, rows)
			})
		},
	}
	l.flags(cmd, "ids", networkFilters.keys())
	return cmd
}

func (p *program) networkInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect NETWORK…", Short: "Show networks in detail", Args: cobra.MinimumNArgs(1),
		Long: `Show networks in detail, as Docker does, and what Berth knows beside it: the
endpoints with their interfaces and ports, and the packets that were refused at
the network's border. Reasons are "leaving" (the network, to where it may not
reach), "entering" (it, without a published port) and "direct" (from outside, to
or as one of its addresses).`,
		Example:           "  berth network inspect front\n  berth network inspect -f '{{range .Refused}}{{.Reason}}: {{.Packets}} {{end}}' front",
		ValidArgsFunction: p.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				out, container := []networkJSON{}, map[string]string{}
				sandboxes, serr := e.RecordedSandboxes(cmd.Context())
				for _, sb := range sandboxes {
					container[sb.ID] = sb.Labels[ofContainer]
				}
				err := each(args, func(name string) error {
					d, err := e.InspectNetwork(cmd.Context(), name)
					if err == nil {
						out = append(out, networkAsJSON(d, container))
					}
					return err
				})
				return errors.Join(err, serr, inspect(p.out, format, out))
			})
		},
	}
	detailFlag(cmd, &format)
	refuse(cmd, "network inspect")
	return cmd
}

// detailFlag adds the flag of a command that shows things in detail.
func detailFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "format", "f", "", "json (in one line) or a Go `template`")
}
