"""What drafts are made of: networks with their cache, trees and files, and what drafts without one:
tables, automata, searches.
"""
