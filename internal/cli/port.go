package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/container"
)

func (p *program) publish() *cobra.Command {
	var o engine.PublishOptions
	cmd := &cobra.Command{
		Use: "publish SANDBOX [HOST:]PORT[-PORT]:PORT[-PORT][/tcp|udp|sctp]…", Short: "Let ports of the host lead to a running sandbox",
		Long: `Let ports of the host lead to a running sandbox, all or none, at once. The
grammar is that of docker -p: 8888:80, 127.0.0.1:8888:80, [::1]:8888:80/udp,
8000-8002:80-82, 8000-8010:80 (one that is free), 80 or 127.0.0.1::80 (a random
one). The answer lists what is published.`,
		Args:              cobra.MinimumNArgs(2),
		Example:           "  berth publish web 8888:80\n  berth publish --replace green 443:8443",
		ValidArgsFunction: p.completeSandbox,
		RunE: func(cmd *cobra.Command, args []string) error {
			specs, err := portSpecs(args[1:])
			if err != nil {
				return usage(err)
			}
			if o.Cut && !o.Replace {
				return usage(errors.New("publish: --cut goes with --replace"))
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				var ports []berth.Port
				wished, err := p.wish(cmd.Context(), e, args[0], func(s *container.Service, id string) (err error) {
					ports, err = s.Publish(cmd.Context(), id, specs, container.PublishChoice{Network: o.Network, Replace: o.Replace, Cut: o.Cut})
					return err
				})
				if !wished && err == nil {
					ports, err = e.Publish(cmd.Context(), args[0], specs, o)
				}
				for _, x := range ports {
					p.say(portLine(x))
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Network, "network", "", "lead to the endpoint on this `network` (default: the one with the default route)")
	f.BoolVar(&o.Replace, "replace", false, "take the ports over from other sandboxes; connections that stand stay where they are")
	f.BoolVar(&o.Cut, "cut", false, "with --replace: end the connections that stand")
	completeFlag(cmd, "network", p.completeNetworks)
	return p.changing(cmd)
}

// portSpecs reads ports as "publish" takes them.
func portSpecs(words []string) (specs []berth.PortSpec, err error) {
	for _, w := range words {
		s, err := berth.ParsePortSpec(w)
		if err != nil {
			return nil, err
		}
		specs = append(specs, s...)
	}
	return specs, nil
}

func (p *program) unpublish() *cobra.Command {
	var everything bool
	cmd := &cobra.Command{
		Use: "unpublish SANDBOX {--all | SPEC…}", Short: "Take published ports back",
		Long: `Take published ports back, all or none, at once. A SPEC is one of "publish"
(8888:80, 127.0.0.1:8888:80/udp), or a port of the host alone: 8888, 8000-8002,
8888/udp. That is where it differs from "publish", where a port alone is the
sandbox's.`,
		Args:              cobra.MinimumNArgs(1),
		Example:           "  berth unpublish web 8888\n  berth unpublish web --all",
		ValidArgsFunction: p.completePublished,
		RunE: func(cmd *cobra.Command, args []string) error {
			if everything == (len(args) > 1) {
				return usage(fmt.Errorf("unpublish %s: say which ports, or --all", args[0]))
			}
			var specs []berth.PortSpec
			for _, a := range args[1:] {
				s, err := unpublishSpec(a)
				if err != nil {
					return usage(err)
				}
				specs = append(specs, s...)
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				wished, err := p.wish(cmd.Context(), e, args[0], func(s *container.Service, id string) error {
					_, err := s.Unpublish(cmd.Context(), id, specs)
					return err
				})
				if !wished && err == nil {
					_, err = e.Unpublish(cmd.Context(), args[0], specs)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&everything, "all", "a", false, "all ports of the sandbox")
	return p.changing(cmd)
}

// unpublishSpec reads a spec of "unpublish": where publish means a port of the
// sandbox, a port alone is one of the host.
func unpublishSpec(s string) ([]berth.PortSpec, error) {
	ports, proto, _ := strings.Cut(s, "/")
	if strings.Contains(ports, ":") {
		return berth.ParsePortSpec(s)
	}
	low, high, isRange := strings.Cut(ports, "-")
	if !isRange {
		high = low
	}
	l, err1 := strconv.ParseUint(low, 10, 16)
	h, err2 := strconv.ParseUint(high, 10, 16)
	spec := berth.PortSpec{Protocol: berth.Protocol(strings.ToLower(proto)), HostLow: uint16(l), HostHigh: uint16(h)}
	switch spec.Protocol {
	case "":
		spec.Protocol = berth.TCP
	case berth.TCP, berth.UDP, berth.SCTP:
	default:
		return nil, fmt.Errorf("port %q: the protocol is tcp, udp or sctp: %w", s, berth.ErrInvalid)
	}
	if err1 != nil || err2 != nil || l == 0 || h < l {
		return nil, fmt.Errorf("port %q: a host port is wanted, as 8888, 8000-8002 or 8888:80: %w", s, berth.ErrInvalid)
	}
	return []berth.PortSpec{spec}, nil
}

// A portRow is a published port in a list.
type portRow struct{ Sandbox, Network, Port, HostIP, HostPort, Protocol, To string }

var portLayout = layout{
	headings: header{
		"Sandbox": "SANDBOX", "Network": "NETWORK", "Port": "PORT", "HostIP": "HOST IP", "HostPort": "HOST PORT",
		"Protocol": "PROTOCOL", "To": "TO",
	},
	shown: []string{"Sandbox", "Network", "Port", "HostIP", "HostPort", "To"},
}

func (p *program) port() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "port [SANDBOX [PORT[/PROTOCOL]]]", Short: "Show published ports", Args: cobra.MaximumNArgs(2),
		Long: `Show published ports: a table of all, those of a sandbox as "docker port" does,
or where one port of it is published. What does not work as one might think is
told on standard error.`,
		Example:           "  berth port web\n  berth port web 80/tcp\n  berth port --format '{{.HostPort}} {{.Sandbox}}'",
		ValidArgsFunction: p.completePort,
		RunE: func(cmd *cobra.Command, args []string) error {
			match, err := portFilter(args)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				ports, err := e.Ports(cmd.Context(), strings.Join(args[:min(len(args), 1)], ""))
				if err != nil {
					return err
				}
				ports = slices.DeleteFunc(ports, func(x engine.PortDetail) bool { return !match(x) })
				p.notes(ports)
				switch {
				case l.format != "" || len(args) == 0:
					return show(l, p.out, portLayout, portRows(ports))
				case len(args) == 2 && len(ports) == 0:
					return fmt.Errorf("port %s of %s is not published: %w", args[1], args[0], berth.ErrNotFound)
				}
				for _, x := range ports {
					line := portLine(x.Port)
					if len(args) == 2 {
						_, line, _ = strings.Cut(line, " -> ")
					}
					fmt.Fprintln(p.out, line)
				}
				return nil
			})
		},
	}
	l.formatFlag(cmd)
	return cmd
}

// portFilter reads the second argument of "port".
func portFilter(args []string) (func(engine.PortDetail) bool, error) {
	if len(args) < 2 {
		return func(engine.PortDetail) bool { return true }, nil
	}
	specs, err := berth.ParsePortSpec(args[1])
	if err != nil || len(specs) != 1 || specs[0].HostIP.IsValid() || specs[0].HostLow != 0 {
		return nil, usage(fmt.Errorf("port %q: a port of the sandbox is wanted, as 80 or 80/udp", args[1]))
	}
	return func(x engine.PortDetail) bool {
		return x.To.Port() == specs[0].Port && x.Protocol == specs[0].Protocol
	}, nil
}

func portRows(ports []engine.PortDetail) []portRow {
	var rows []portRow
	for _, x := range ports {
		rows = append(rows, portRow{
			x.SandboxName, x.NetworkName, fmt.Sprintf("%d/%s", x.To.Port(), x.Protocol), x.HostIP.String(),
			fmt.Sprint(x.HostPort), string(x.Protocol), x.To.String(),
		})
	}
	return rows
}

// notes says once what applies to several ports.
func (p *program) notes(ports []engine.PortDetail) {
	said := map[string]bool{}
	for _, x := range ports {
		for _, n := range x.Notes {
			if !said[n] {
				p.note(n)
			}
			said[n] = true
		}
	}
}
